"""Whole networks: which there are, that their peers are verified, and how their results are shown."""

import json
import sys

import pytest
import torch
from torch import nn

from dwsep.bench import measuring, network_problem
from dwsep.bench.markdown import render_markdown
from dwsep.bench.measuring import Settings, compare
from dwsep.bench.network_problem import NetworkProblem, make_network_problem
from dwsep.bench.network_verify import compute_network_truth
from dwsep.bench.networks import NETWORKS, NetworkCase, NetworkTask, plan, task_from_json
from dwsep.bench.peers import NETWORK_BUILDERS, PEERS, Built, CannotRun
from dwsep.bench.registry import Task
from dwsep.bench.results import derive, group, notes
from dwsep.bench.tables import result_tables
from dwsep.bench.verify import find_fault
from dwsep.ops import native_status
from tests.bench.toys import CEILINGS, FAST, TINY, make_network_record, make_results

for library in ("timm", "torchvision"):
    pytest.importorskip(library, reason=f"{library} is an extra")
TINY_NETWORK = "mobilenetv3_small_050"
FAILED = {"status": "failed", "reason": "RuntimeError: no"}
RUNTIMES = ("onnxruntime", "openvino")


def tiny_task(training=False):
    return NetworkTask(NetworkCase.make(TINY_NETWORK, 2, 64), training)


def with_peers(*names):
    return Settings(**{**vars(FAST), "peers": names})


def toy_problem(network, training=True):
    x = torch.randn(2, 3, 8, 8)
    task = NetworkTask(NetworkCase.make("toy", 2, 8), training)
    return NetworkProblem(task, network.train(training), x, torch.ones_like(network(x)), 1)


@pytest.fixture
def toy(monkeypatch):
    """Makes every network the one it is given."""

    def replace(network):
        monkeypatch.setattr(network_problem, "create", lambda name: network)

    return replace


def test_plan_has_every_network_at_its_own_size():
    tasks = plan()
    assert [task.case.network for task in tasks] == [*NETWORKS, *NETWORKS]
    assert [task.case.batch for task in tasks] == [1] * len(NETWORKS) + [8] * len(NETWORKS)
    assert {task.case.size for task in tasks if task.case.network != "legacy_xception"} == {224}
    assert {task.case.size for task in tasks if task.case.network == "legacy_xception"} == {299}
    assert len({task.key for task in tasks + plan(training=True)}) == 3 * len(NETWORKS)


def test_plan_takes_names_batches_and_a_size():
    tasks = plan(["torchvision/mnasnet0_5", TINY_NETWORK], training=True, batches=[4, 2], size=96)
    assert [task.key for task in tasks] == [
        "network torchvision/mnasnet0_5@96 batch 2 training float32",
        "network mobilenetv3_small_050@96 batch 2 training float32",
        "network torchvision/mnasnet0_5@96 batch 4 training float32",
        "network mobilenetv3_small_050@96 batch 4 training float32",
    ]


@pytest.mark.parametrize(("training", "mode"), [(False, "inference"), (True, "training")])
def test_plan_in_bfloat16(training, mode):
    tasks = plan([TINY_NETWORK], dtype="bfloat16", training=training, batches=[2])
    assert [task.key for task in tasks] == [f"network mobilenetv3_small_050@224 batch 2 {mode} bfloat16"]
    assert [task.autocasts for task in tasks] == [training]
    with pytest.raises(ValueError, match="float16"):
        plan([TINY_NETWORK], dtype="float16")


@pytest.mark.parametrize("peer", ["dwsep", "nchw", "channels_last", *RUNTIMES])
def test_networks_of_bfloat16(peer):
    problem = make_network_problem(NetworkTask(NetworkCase.make(TINY_NETWORK, 2, 64), dtype="bfloat16"))
    assert {parameter.dtype for parameter in problem.network.parameters()} == {torch.bfloat16}
    assert problem.x.dtype is torch.bfloat16
    if peer == "onnxruntime":
        with pytest.raises(CannotRun, match="float32 only"):
            NETWORK_BUILDERS[peer](problem)
        return
    if peer == "dwsep" and not native_status().loaded:
        pytest.skip(f"native library: {native_status().reason}")
    if peer == "openvino":
        pytest.importorskip("openvino", reason="openvino is an extra")
    with torch.no_grad():
        built = NETWORK_BUILDERS[peer](problem)
        assert find_fault(compute_network_truth(problem), built.tensors(built.call()))[0] is None


@pytest.mark.parametrize("peer", ["dwsep", "nchw", "channels_last", *RUNTIMES])
def test_training_in_bfloat16_is_autocast(peer):
    problem = make_network_problem(NetworkTask(NetworkCase.make(TINY_NETWORK, 2, 64), True, dtype="bfloat16"))
    assert {tensor.dtype for tensor in (*problem.network.parameters(), problem.x)} == {torch.float32}
    if peer in RUNTIMES:
        with pytest.raises(CannotRun, match="inference only"):
            NETWORK_BUILDERS[peer](problem)
        return
    if peer == "dwsep" and not native_status().loaded:
        pytest.skip(f"native library: {native_status().reason}")
    truth = compute_network_truth(problem)
    built = NETWORK_BUILDERS[peer](problem)
    y = built.call()
    assert y.dtype is torch.bfloat16
    assert find_fault(truth, built.tensors(y))[0] is None
    # Rounding is seen, so that float32's truth would not be what it is compared with.
    exact = truth.values[0]
    assert (y.double() - exact).norm() > 1e-4 * exact.norm()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilenetv2_10", "timm has no 'mobilenetv2_10'; close to it: .*'mobilenetv2_100'"),
        ("torchvision/mobilenet2", "torchvision's classifiers has no .*; close to it: 'torchvision/mobilenet_v2'"),
        ("torchvision/lraspp_mobilenet_v3_large", "torchvision's classifiers has no"),
        ("§§§", "timm has no '§§§'; nothing is close to it"),
    ],
)
def test_plan_names_what_is_close_to_an_unknown_network(name, message):
    with pytest.raises(ValueError, match=message):
        plan([name])


@pytest.mark.parametrize(("name", "package"), [("mobilenetv2_100", "timm"), ("torchvision/resnet18", "torchvision")])
def test_plan_says_what_to_install(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"come from {package} .*pip install 'dwsep\[bench\]'"):
        plan([name])


@pytest.mark.parametrize("task", [tiny_task(True), Task(TINY, "norm")], ids=lambda task: task.key)
def test_task_survives_json(task):
    assert task_from_json(json.loads(json.dumps(task.to_json()))) == task


def test_every_peer_can_be_asked_for_networks():
    assert list(NETWORK_BUILDERS) == list(PEERS)


@pytest.mark.parametrize("training", [False, True])
def test_compare_verifies_and_times_every_peer(training):
    names = [name for name in PEERS if name != "compile"]
    record = compare(tiny_task(training), with_peers(*names))
    assert task_from_json(record["task"]) == tiny_task(training)
    for name, peer in record["peers"].items():
        if name in RUNTIMES and (training or peer["status"] == "unavailable"):
            assert peer["status"] == "unavailable"
            assert not training or peer["reason"] == f"{name} runs inference only"
        elif name == "dwsep" and not native_status().loaded:
            assert peer["status"] == "unavailable"
        else:
            assert peer["status"] == "ok", peer
            assert 0 <= peer["error"] < 1
    assert record["network"]["macs"] > 2 * 10**5
    if training:
        assert record["peers"]["nchw"]["saved_bytes"] == record["network"]["eager_saved_bytes"] > 0
        if native_status().loaded:
            assert record["peers"]["dwsep"]["saved_bytes"] < record["network"]["eager_saved_bytes"]
    json.dumps(record)


@pytest.mark.sweep
@pytest.mark.parametrize("training", [False, True])
def test_compiled_network_is_right(training):
    assert compare(tiny_task(training), with_peers("compile"))["peers"]["compile"]["status"] == "ok"


@pytest.mark.parametrize("what", ["output", "gradient"])
def test_compare_gives_no_time_to_a_wrong_network(monkeypatch, what):
    def build(problem):
        built = NETWORK_BUILDERS["nchw"](problem)

        def spoil(result):
            tensors = list(built.tensors(result))
            position = 0 if what == "output" else len(tensors) // 2
            tensors[position] = tensors[position] * 1.01
            return tensors

        return Built(built.call, spoil)

    monkeypatch.setattr(measuring, "NETWORK_BUILDERS", {**NETWORK_BUILDERS, "channels_last": build})
    peers = compare(tiny_task(what == "gradient"), with_peers("nchw", "channels_last"))["peers"]
    assert peers["nchw"]["status"] == "ok"
    assert peers["channels_last"]["status"] == "wrong"
    assert f"the {what}" in peers["channels_last"]["reason"]
    assert "of its norm away from float64's" in peers["channels_last"]["reason"]


@pytest.mark.parametrize("name", ["channels_last", "compile"])
def test_what_would_corrupt_memory_is_left_out_of_training(name):
    network = nn.Sequential(nn.Conv2d(3, 8, 1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(CannotRun, match=r"'0' would corrupt memory.*oneDNN/issues/6035"):
        NETWORK_BUILDERS[name](toy_problem(network))


def test_channels_last_runs_what_overruns_nothing():
    for conv in (nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(3, 8, 1), nn.Conv2d(3, 3, 1, stride=2, groups=3)):
        network = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        assert NETWORK_BUILDERS["channels_last"](toy_problem(network)).saved_bytes is not None


def test_dwsep_says_where_it_gains_nothing():
    if not native_status().loaded:
        pytest.skip("the native library is not loaded")
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(CannotRun, match="nothing to gain, left alone"):
        NETWORK_BUILDERS["dwsep"](toy_problem(network))


@pytest.mark.parametrize(
    ("name", "module"), [("onnxruntime", "onnxruntime"), ("onnxruntime", "onnx"), ("openvino",) * 2]
)
def test_peer_names_what_is_not_installed(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(CannotRun, match=r"dwsep\[bench\]"):
        NETWORK_BUILDERS[name](toy_problem(network, training=False))


def test_problem_is_the_same_every_time_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    first, second = (make_network_problem(tiny_task()) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.x, second.x)
    other = second.network.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in first.network.state_dict().items())
    assert not any(torch.all(tensor == 0) for name, tensor in other.items() if name.endswith("running_mean"))


def test_dropout_is_off(toy):
    toy(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(3, 4)))
    task = NetworkTask(NetworkCase.make("toy", 2, 8), True)
    assert compare(task, with_peers("nchw"))["peers"]["nchw"]["status"] == "ok"


def test_what_is_random_cannot_be_verified(toy):
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    toy(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Noise()))
    with pytest.raises(RuntimeError, match="the network is random, or overflows"):
        compare(NetworkTask(NetworkCase.make("toy", 2, 8)), with_peers("nchw"))


def test_what_is_no_classifier_is_refused(toy):
    toy(nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=r"returns \(N, classes\), this one returns a tensor of shape \(1, 4, 6, 6\)"):
        make_network_problem(NetworkTask(NetworkCase.make("toy", 2, 8)))


def test_derive_holds_a_step_to_three_forward_passes():
    record = make_network_record({"dwsep": 0.02, "nchw": 0.05}, training=True, macs=10**9, saved=(30, 100))
    derived = record["derived"]
    assert derived["macs"] == 3 * 10**9
    assert derived["floor_seconds"] == 2 * 3e9 / 4e11
    assert derived["share_of_floor"] == derived["floor_seconds"] / 0.02
    assert derived["saved_share"] == 0.3
    assert derived["ratios"]["best"] == 2.5


def test_tables_show_networks_with_what_they_save():
    records = [
        make_network_record({"dwsep": 0.02, "nchw": 0.05}, training=True, saved=(30, 100)),
        make_network_record({"nchw": 0.05}, "other", training=True, dwsep=FAILED),
        make_network_record({"dwsep": 0.004, "openvino": 0.006}),
    ]
    inference, training = result_tables(records)
    assert training.title == "network, training, batch 8, float32, allocator default"
    assert training.headings == ("network", "dwsep", "NCHW", "x best", "x eager", "saved", "floor ms", "floor")
    assert training.rows[0] == ("net@224", "20.0", "50.0", "2.50", "2.50", "30 %", "15.0", "75 %")
    assert training.rows[1] == ("other@224", "failed", "50.0", "-", "-", "-", "15.0", "-")
    assert inference.rows == (("net@224", "4.00", "6.00", "1.50", "5.00", "125 %"),)
    assert notes(records) == ["dwsep failed (other@224): RuntimeError: no"]


def test_tables_do_without_what_took_the_worker_down():
    record = make_network_record({}, training=True, dwsep=FAILED)
    del record["network"]
    record["derived"] = derive(record, CEILINGS)
    (table,) = result_tables([record])
    assert table.rows == (("net@224", "failed", "-", "-", "-"),)


def test_group_keeps_the_order_of_the_list():
    records = [make_network_record({"dwsep": 1.0}, name) for name in ("other", NETWORKS[3], NETWORKS[0])]
    ((_, members),) = group(records).items()
    assert [record["task"]["case"]["network"] for record in members] == [NETWORKS[0], NETWORKS[3], "other"]


def test_markdown_is_about_networks():
    page = render_markdown(make_results([make_network_record({"dwsep": 0.004, "nchw": 0.006})], "networks"))
    assert page.startswith("# Networks against their peers\n\n`dwsep bench networks`")
    assert "dwsep.accelerate_" in page
    assert "## Network, inference, batch 8, float32, allocator default" in page
    assert "| net@224 | 4.00 | **6.00** | 1.50 | 1.50 | 5.00 | 125 % |" in page
