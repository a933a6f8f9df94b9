import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from dwsep.bench import networks, registry
from dwsep.bench import run as bench_run
from dwsep.cli.main import app
from tests.bench.toys import CEILINGS, TINY, TINY_DEPTHWISE, make_network_record, make_record, make_results


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(registry, "SEPARABLE", (TINY,))
    monkeypatch.setattr(registry, "DEPTHWISE", (TINY_DEPTHWISE,))


@pytest.fixture
def plans(monkeypatch):
    """What would be run; nothing is."""
    seen = []

    def run(plan, **options):
        seen.append((plan, options))
        times = {"dwsep": 1.0, "nchw": 2.0}
        if plan.subject == "layers":
            return make_results([make_record(times, task) for task in plan.tasks])
        records = [make_network_record(times, task.case.network, training=task.training) for task in plan.tasks]
        return make_results(records, "networks")

    monkeypatch.setattr(bench_run, "run", run)
    return seen


def invoke(*arguments, **options):
    return CliRunner().invoke(app, ["bench", "layers", *arguments], **options)


def invoke_networks(*arguments, **options):
    for library in ("timm", "torchvision"):
        pytest.importorskip(library, reason=f"{library} is an extra")
    return CliRunner().invoke(app, ["bench", "networks", *arguments], **options)


def test_bench_quick_end_to_end(tiny, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    files = [str(tmp_path / name) for name in ("results.json", "page.md", "plot.png")]
    finished = invoke(
        "--quick", "--set", "separable", "--case", "tiny", "--threads", "1",
        "--json", files[0], "--markdown", files[1], "--plot", files[2], env={"COLUMNS": "80"},
    )  # fmt: skip
    assert finished.exit_code == 0, finished.output
    with open(files[0]) as file:
        results = json.load(file)
    assert [record["task"]["variant"] for record in results["records"]] == ["bare", "norm"]
    for record in results["records"]:
        for name in ("nchw", "channels_last"):
            assert record["peers"][name]["status"] == "ok"
        assert {peer["status"] for peer in record["peers"].values()} <= {"ok", "unavailable"}
        assert "compile" not in record["peers"]
    assert all(os.path.getsize(name) > 100 for name in files)
    assert "separable norm, inference, batch 1, float32, allocator default" in finished.stdout
    assert max(map(len, finished.stdout.splitlines())) <= max(80, len(f"wrote {files[0]}"))


def test_bench_by_default_measures_inference_of_all_with_all_under_both_allocators(plans):
    assert invoke().exit_code == 0
    plan, options = plans[0]
    assert plan.tasks == registry.plan()
    assert plan.allocators == ("default", "raised")
    assert plan.settings.peers == ("dwsep", "nchw", "channels_last", "compile", "onnxruntime", "openvino")
    assert (options["path"], options["resume"]) == (None, False)


def test_bench_options_reach_the_run(plans, tmp_path):
    path = tmp_path / "results.json"
    finished = invoke(
        *("--set", "separable", "--training", "--dtype", "bfloat16", "--batch", "2", "--batch", "3"),
        *("--case", "@33", "--peers", "compile, nchw", "--allocator", "raised", "--threads", "7"),
        *("--json", str(path), "--resume"),
    )
    assert finished.exit_code == 0
    plan, options = plans[0]
    assert plan.tasks == registry.plan("separable", training=True, dtype="bfloat16", batches=[2, 3], names=["@33"])
    assert plan.allocators == ("raised",)
    assert plan.settings.peers == ("dwsep", "nchw", "compile")
    assert plan.settings.threads == 7
    assert (options["path"], options["resume"]) == (path, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "eager"], "peers: unknown name 'eager'; valid names are 'dwsep', 'nchw'"),
        (["--allocator", "tcmalloc"], "allocator: unknown name 'tcmalloc'"),
        (["--set", "dense"], "set: unknown name 'dense'"),
        (["--case", "dense"], "case: unknown name 'dense'"),
        (["--resume"], "--resume needs --json with the file to continue"),
    ],
)
def test_bench_explains_wrong_options(arguments, message):
    finished = invoke(*arguments)
    assert finished.exit_code == 2
    assert message in finished.stderr


def test_bench_fails_where_dwsep_is_wrong(monkeypatch):
    wrong = {"status": "wrong", "reason": "all elements of y are wrong"}
    results = make_results([make_record({"nchw": 2.0}, dwsep=wrong)])
    monkeypatch.setattr(bench_run, "run", lambda plan, **options: results)
    finished = invoke()
    assert finished.exit_code == 1
    assert re.search("dwsep wrong.*all elements of y are wrong", finished.stdout)


def test_bench_shows_what_was_done_before_an_interrupt(monkeypatch):
    def run(plan, **options):
        raise bench_run.BenchInterrupted(
            "interrupted after 1 of 9", make_results([make_record({"dwsep": 1, "nchw": 2})])
        )

    monkeypatch.setattr(bench_run, "run", run)
    finished = invoke()
    assert finished.exit_code == 130
    assert "tiny" in finished.stdout
    assert finished.stderr.endswith("interrupted after 1 of 9\n")


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="tells by /proc whether a process is there")
@pytest.mark.skipif(shutil.which("ps") is None, reason="no ps here")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_bench_stops_at_a_signal_and_leaves_no_process(tmp_path, number):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [
        sys.executable,
        "-m",
        "dwsep.cli",
        "bench",
        "layers",
        "--peers",
        "nchw",
        "--json",
        str(tmp_path / "r.json"),
    ]
    running = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell without job control starts what runs behind it with this signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        children = []
        while not children and running.poll() is None:
            listed = subprocess.run(
                ["ps", "-o", "pid=,args=", "--ppid", str(running.pid)], capture_output=True, text=True
            )
            children = [line.split()[0] for line in listed.stdout.splitlines() if "dwsep.bench.worker" in line]
        running.send_signal(number)
        _, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "interrupted after 0 of" in errors
    deadline = time.monotonic() + 30  # one that was just being started ends by itself, for want of a parent
    while any(os.path.exists(f"/proc/{child}") for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ceilings_are_shown(plans):
    shown = invoke("--case", "32-64").stdout
    assert f"multiply-add peak {CEILINGS.fma_peak / 1e9:.0f} GFLOP/s (avx2)" in " ".join(shown.split())


def test_bench_networks_quick_end_to_end(tmp_path):
    files = [str(tmp_path / name) for name in ("results.json", "page.md")]
    arguments = (
        "mobilenetv3_small_050", "--training", "--quick", "--batch", "2", "--size", "64", "--threads", "1",
        "--peers", "nchw", "--json", files[0], "--markdown", files[1],
    )  # fmt: skip
    finished = invoke_networks(*arguments, env={"COLUMNS": "80"})
    assert finished.exit_code == 0, finished.output
    with open(files[0]) as file:
        results = json.load(file)
    (record,) = results["records"]
    assert results["subject"] == "networks"
    assert record["peers"]["nchw"]["status"] == "ok"
    assert record["peers"]["dwsep"]["status"] in ("ok", "unavailable")
    assert "network, training, batch 2, float32, allocator default" in finished.stdout
    assert max(map(len, finished.stdout.splitlines())) <= max(80, len(f"wrote {files[0]}"))
    assert invoke_networks(*arguments, "--resume").exit_code == 0
    assert "exists: continue it with --resume" in invoke_networks(*arguments).stderr


def test_bench_networks_by_default_measures_inference_of_all_with_all_under_both_allocators(plans):
    assert invoke_networks().exit_code == 0
    plan, options = plans[0]
    assert plan.tasks == networks.plan()
    assert plan.subject == "networks"
    assert plan.allocators == ("default", "raised")
    assert plan.settings.peers == ("dwsep", "nchw", "channels_last", "compile", "onnxruntime", "openvino")
    assert (options["path"], options["resume"]) == (None, False)


def test_bench_networks_compiles_a_training_step_only_on_request(plans):
    assert invoke_networks("--training").exit_code == 0
    assert "compile" not in plans[0][0].settings.peers
    assert invoke_networks("--training", "--peers", "nchw,compile").exit_code == 0
    assert plans[1][0].settings.peers == ("dwsep", "nchw", "compile")


def test_bench_networks_options_reach_the_run(plans):
    finished = invoke_networks(
        *("mixnet_s", "torchvision/mobilenet_v2", "--training", "--batch", "2", "--batch", "3", "--size", "96"),
        *("--allocator", "raised", "--threads", "7"),
    )
    assert finished.exit_code == 0
    plan, _ = plans[0]
    names = ["mixnet_s", "torchvision/mobilenet_v2"]
    assert plan.tasks == networks.plan(names, training=True, batches=[2, 3], size=96)
    assert plan.allocators == ("raised",)
    assert plan.settings.threads == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mobilenetv2_10"], "networks: timm has no 'mobilenetv2_10'; close to it: "),
        (["--peers", "eager"], "peers: unknown name 'eager'"),
        (["--allocator", "tcmalloc"], "allocator: unknown name 'tcmalloc'"),
        (["--resume"], "--resume needs --json with the file to continue"),
    ],
)
def test_bench_networks_explains_wrong_options(arguments, message):
    finished = invoke_networks(*arguments)
    assert finished.exit_code == 2
    assert message in finished.stderr


def test_bench_networks_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    finished = CliRunner().invoke(app, ["bench", "networks", "mobilenetv2_100"])
    assert finished.exit_code == 2
    assert "get it with: pip install 'dwsep[bench]'" in finished.stderr
