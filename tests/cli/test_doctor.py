import json
import subprocess
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import dwsep
from dwsep.analysis import allocator, fresh_memory
from dwsep.cli import _doctor_checks, _selftest
from dwsep.cli._doctor_checks import Check
from dwsep.cli.main import app

NATIVE = dwsep.ops.native_status()


@pytest.fixture(scope="module")
def json_report():
    finished = CliRunner().invoke(app, ["doctor", "--json"])
    return finished.exit_code, json.loads(finished.stdout)


def find(checks, name):
    (check,) = (check for check in checks if check["name"] == name)
    return check


def test_doctor_passes_here(json_report):
    exit_code, report = json_report
    assert exit_code == 0
    assert report["ok"]
    assert [check for check in report["checks"] if check["status"] == "failed"] == []


def test_doctor_json_tells_machine_versions_and_backends(json_report):
    _, report = json_report
    assert report["versions"]["dwsep"] == dwsep.__version__
    assert "torch" in report["versions"]
    assert report["machine"]["cpu"]
    assert report["machine"]["torch_threads"] == torch.get_num_threads()
    assert report["backends"]["native_library"]["isa"] == NATIVE.isa
    assert report["backends"]["reference"]["available"] is True
    assert report["backends"]["triton"]["reasons"] or report["backends"]["triton"]["available"]


def test_doctor_tests_every_path_this_cpu_supports(json_report):
    _, report = json_report
    assert find(report["checks"], "reference kernels")["status"] == "ok"
    tested = [check["name"] for check in report["checks"] if check["name"].startswith("native kernels")]
    assert sorted(tested) == sorted(f"native kernels, {isa}" for isa in NATIVE.supported_isas)
    if not NATIVE.loaded:
        assert find(report["checks"], "native library")["status"] == "warning"
        assert NATIVE.reason in find(report["checks"], "native library")["detail"]


@pytest.mark.parametrize(
    ("statuses", "exit_code", "text"),
    [
        (["ok"], 0, "all checks passed"),
        (["ok", "warning"], 0, "all checks passed, with 1 warning"),
        (["ok", "failed", "warning"], 1, "1 check failed"),
    ],
)
def test_doctor_exit_code_and_marks_follow_the_checks(monkeypatch, statuses, exit_code, text):
    checks = [Check(f"check {index}", status, "[detail]") for index, status in enumerate(statuses)]
    monkeypatch.setattr(_doctor_checks, "run_checks", lambda on_step: checks)
    finished = CliRunner().invoke(app, ["doctor"])
    assert finished.exit_code == exit_code
    assert text in finished.stdout
    assert "[detail]" in finished.stdout
    marks = {"ok": "✓", "warning": "!", "failed": "✗"}
    assert all(f"{marks[status]} │ check {index}" in finished.stdout for index, status in enumerate(statuses))


def wrong_by(error):
    def kernel(*args, backend, **options):
        out = genuine(*args, backend="reference", **options)
        out.view(-1)[-1] += error
        return out

    genuine = dwsep.functional.depthwise_separable_conv2d
    return kernel


@pytest.mark.parametrize("error", [1.0, 2.0**-10, float("nan")])
def test_selftest_catches_a_wrong_element(monkeypatch, error):
    monkeypatch.setattr(dwsep.functional, "depthwise_separable_conv2d", wrong_by(error))
    outcome = _selftest.run("reference")
    assert len(outcome["failures"]) >= outcome["problems"]
    check = _doctor_checks._check_selftest("reference", None)
    assert check.status == "failed"
    assert "comparisons are wrong, first: Problem(channels=32" in check.detail


def test_selftest_reports_a_kernel_that_raises(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(dwsep.functional, "depthwise_separable_conv2d", broken)
    outcome = _selftest.run("reference")
    assert len(outcome["failures"]) == outcome["problems"] == len(_selftest.PROBLEMS)
    assert "RuntimeError: no such instruction" in outcome["failures"][0]


def test_selftest_problems_cover_every_option():
    problems = _selftest.PROBLEMS
    assert len(set(problems)) == len(problems) >= 20
    assert {problem.channels % 16 == 0 for problem in problems} == {True, False}
    for field in ("kernel_size", "stride", "padding", "dilation", "depth_multiplier", "bias", "activation"):
        assert len({getattr(problem, field) for problem in problems}) > 1


def test_check_selftest_runs_another_path_in_a_process_of_its_own(monkeypatch):
    started = []

    def run(command, **options):
        started.append((command, options["env"]["DWSEP_ISA"]))
        outcome = {"isa": "other", "problems": 20, "failures": [], "worst": 0.5, "seconds": 1.0}
        return subprocess.CompletedProcess(command, 0, json.dumps(outcome), "")

    monkeypatch.setattr(subprocess, "run", run)
    check = _doctor_checks._check_selftest("cpu", "other")
    assert check.status == "ok"
    assert "50% of the rounding bound" in check.detail
    assert started[0][0][1:] == ["-m", "dwsep.cli._selftest", "cpu"]
    assert started[0][1] == "other"
    assert _doctor_checks._check_selftest("cpu", "third").status == "failed"  # "other" answered


def test_check_selftest_survives_a_process_that_dies(monkeypatch):
    def run(command, **options):
        return subprocess.CompletedProcess(command, -4, "", "Illegal instruction\n")

    monkeypatch.setattr(subprocess, "run", run)
    check = _doctor_checks._check_selftest("cpu", "other")
    assert check == Check("native kernels, other", "failed", "exit code -4: Illegal instruction")


@pytest.mark.parametrize(
    ("vectors", "tiles", "status", "text"),
    [
        (2.0, 1.0, "warning", "2.00 ms by vectors and 1.00 ms by tiles: set DWSEP_ISA=amx_fp32"),
        (1.0, 1.1, "ok", "vectors are used"),
    ],
)
def test_check_tiles_tells_where_they_gain(monkeypatch, vectors, tiles, status, text):
    times = {"amx": vectors, "amx_fp32": tiles}

    def run(command, **options):
        assert command[1:] == ["-m", "dwsep.cli._selftest", "time"]
        return subprocess.CompletedProcess(command, 0, json.dumps(times[options["env"]["DWSEP_ISA"]]), "")

    monkeypatch.setattr(subprocess, "run", run)
    check = _doctor_checks._check_tiles()
    assert check.status == status
    assert text in check.detail


def test_the_layer_that_doctor_times_takes_time():
    assert 0 < _selftest.measure_layer() < 10_000


def test_check_native_fails_where_the_library_is_there_but_cannot_be_loaded(monkeypatch):
    broken = replace(NATIVE, loaded=False, path="libdwsep.so", reason="libdwsep.so cannot be loaded: wrong ELF class")
    monkeypatch.setattr(dwsep.ops, "native_status", lambda: broken)
    check = _doctor_checks._check_native()
    assert check.status == "failed"
    assert "wrong ELF class" in check.detail


def test_check_threads_warns_of_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    check = _doctor_checks._check_threads()
    assert check.status == "warning"
    assert "OMP_NUM_THREADS" in check.detail


@pytest.mark.parametrize(
    ("fresh", "faults", "name", "status", "words"),
    [
        (1.1, 200, "glibc", "ok", ["with glibc", "1.10 ms and 200 page faults", "against 1.00 ms"]),
        (9.0, 0, "glibc", "ok", ["9.00 ms and 0 page faults"]),  # a busy machine, not the allocator
        (1.3, 200, "glibc", "warning", ["train and demo", "MALLOC_MMAP_MAX_=0", "libtcmalloc"]),
        (1.3, 200, "jemalloc", "warning", ["with jemalloc", "libtcmalloc"]),
    ],
)
def test_check_fresh_memory_warns_where_page_faults_cost_a_fifth(monkeypatch, fresh, faults, name, status, words):
    cost = fresh_memory.FreshMemory(fresh=fresh / 1000, kept=1 / 1000, faults=faults)
    monkeypatch.setattr(fresh_memory, "measure_fresh_memory", lambda: cost)
    monkeypatch.setattr(allocator, "allocator_name", lambda: name)
    check = _doctor_checks._check_fresh_memory()
    assert check.status == status
    assert all(word in check.detail for word in words)
    assert ("MALLOC_" in check.detail) == (status == "warning" and name == "glibc")


def test_check_torch_fails_for_a_version_that_is_too_old(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    assert _doctor_checks._check_torch() == Check(
        "PyTorch", "failed", "2.10.1+cpu is too old: dwsep needs 2.11 or later"
    )


def test_check_extras_names_what_to_install(monkeypatch):
    monkeypatch.setitem(_doctor_checks.EXTRAS, "report", ("jinja2", "no_such_module"))
    check = _doctor_checks._check_extras()[-1]
    assert check.status == "warning"
    assert "no_such_module" in check.detail
    assert "dwsep[report]" in check.detail
