"""Tasks so small that measuring one takes no time, and records that nothing measured."""

from dwsep.analysis.ceilings import Ceilings
from dwsep.bench.measuring import Settings
from dwsep.bench.networks import NetworkCase, NetworkTask
from dwsep.bench.registry import Case, Task
from dwsep.bench.results import derive

TINY = Case("separable", "tiny", 2, 4, 6, (5, 7), (3, 3), stride=2)
TINY_DILATED = Case("separable", "tiny-dilated", 1, 8, 8, (9, 9), (3, 3), dilation=2)
TINY_DEPTHWISE = Case("depthwise", "tiny-depthwise", 1, 4, 4, (6, 5), (5, 5))
TINY_1D = Case("depthwise", "tiny-1d", 2, 4, 4, (12,), (4,))
TINY_3D = Case("depthwise", "tiny-3d", 1, 4, 4, (3, 5, 6), (3, 3, 3))
TINY_SHORT = Case("short", "tiny-short", 2, 4, 4, (13,), (4,))

FAST = Settings(
    peers=("dwsep", "nchw", "channels_last"),
    rounds=2,
    min_seconds=0.0,
    warmup_seconds=0.0,
    settle_seconds=0.0,
    max_seconds=1.0,
    ceiling_seconds=0.001,
)
CEILINGS = Ceilings(
    fma_peak=4e11, matmul={"float32": 3e11, "bfloat16": 6e11}, copy={2**20: 1e11, 2**24: 5e10}, isa="avx2"
)


def make_record(times, task=Task(TINY), allocator="default", **others):  # noqa: B008, tasks are frozen
    """A record with the given medians in seconds, by peer, and other peers' results as they are."""
    peers = {name: {"status": "ok", "median": seconds, "page_faults": 0.0} for name, seconds in times.items()}
    record = {"task": task.to_json(), "allocator": allocator, "other_cores": 0.0, "peers": {**peers, **others}}
    return {**record, "derived": derive(record, CEILINGS)}


def make_network_record(times, network="net", batch=8, training=False, macs=10**9, saved=None, **others):
    """A network's record; ``saved`` is what dwsep and eager save for backward, in bytes."""
    record = make_record(times, NetworkTask(NetworkCase.make(network, batch, 224), training), **others)
    record["network"] = {"macs": macs}
    if saved is not None:
        record["peers"]["dwsep"]["saved_bytes"], record["network"]["eager_saved_bytes"] = saved
    return {**record, "derived": derive(record, CEILINGS)}


def make_results(records, subject="layers"):
    """Results as a run returns them."""
    machine = {
        "cpu": "a CPU", "usable_cores": 2, "torch_threads": 2, "caches": {"L1d": "32K"}, "system": "Linux",
        "architecture": "x86_64", "glibc": "2.36", "isa": "avx2",
    }  # fmt: skip
    return {
        "format": 1,
        "subject": subject,
        "command": f"dwsep bench {subject}",
        "settings": FAST.to_json(),
        "machine": machine,
        "versions": {"dwsep": "1", "torch": "2", "python": "3"},
        "ceilings": {"float32": CEILINGS.to_json()},
        "records": records,
    }
