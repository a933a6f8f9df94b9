"""``dwsep train`` killed and interrupted, alone and under torchrun: it goes on with the weights it would have had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from dwsep.networks._weights import read_model
from dwsep.training.log import read_log
from dwsep.training.loop import CHECKPOINT_FILE, LOG_FILE, MODEL_FILE
from tests.cli.toys import invoke, write_series


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_series(folder)
    return folder


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


def assert_same(first, second):
    one, other = (read_model(folder / MODEL_FILE)[0] for folder in (first, second))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


LONG = ["--batch-size", "8", "--width-multiplier", "0.125", "--epochs", "12", "--threads", "1"]


@pytest.mark.sweep
def test_a_command_killed_again_and_again_goes_on_bit_for_bit(data, tmp_path):
    """One run, killed 20 times on its way; tests/training/test_distributed.py kills 20 runs, at every stage."""
    options = ["train", "series", "--data", str(data / "Toy_TRAIN.ts"), *LONG, "--checkpoint-seconds", "0.001"]
    assert invoke(*options, "--output-dir", tmp_path / "straight").exit_code == 0
    folder = tmp_path / "killed"
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        again = ["--resume"] if (folder / CHECKPOINT_FILE).exists() else ["--overwrite"]
        command = [sys.executable, "-m", "dwsep.cli", *options, "--output-dir", str(folder), *again]
        process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        before = (folder / CHECKPOINT_FILE).stat().st_mtime_ns if again == ["--resume"] else 0
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (folder / CHECKPOINT_FILE).exists() and (folder / CHECKPOINT_FILE).stat().st_mtime_ns > before:
                break
            time.sleep(0.002)
        time.sleep(0.05 * float(torch.rand(1, generator=generator)))
        process.kill()
        process.wait()
    finished = invoke(*options, "--output-dir", folder, "--resume")
    assert finished.exit_code == 0, finished.stderr
    assert_same(folder, tmp_path / "straight")
    assert sorted(path.name for path in folder.iterdir()) == sorted([CHECKPOINT_FILE, MODEL_FILE, LOG_FILE])
    assert [r["epoch"] for r in read_log(folder / LOG_FILE) if r["type"] == "epoch"] == list(range(1, 13))


@pytest.mark.sweep
def test_two_processes_train_one_network_and_go_on_bit_for_bit(data, tmp_path):
    options = ["train", "series", "--data", str(data / "Toy_TRAIN.ts"), *LONG[:-2], "--threads", "1"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def start(folder, *more):
        command = [*launch, "-m", "dwsep.cli", *options, "--output-dir", str(folder), *more]
        return subprocess.Popen(
            command,
            env=environment(),
            text=True,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    process = start(straight)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert stdout.count("series_separable: test accuracy") == 1
    header, *records = read_log(straight / LOG_FILE)
    assert header["processes"] == 2
    evaluated = invoke("evaluate", "--checkpoint", straight / MODEL_FILE, "--data", data / "Toy_TRAIN.ts", "--json")
    result = json.loads(evaluated.stdout)
    assert result["accuracy"] == records[-1]["test_accuracy"]  # every test series counted once
    assert result["loss"] == pytest.approx(records[-1]["test_loss"], rel=1e-4)

    process = start(stopped)
    deadline = time.monotonic() + 240
    while not (stopped / CHECKPOINT_FILE).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    assert not (stopped / MODEL_FILE).exists()
    process = start(stopped, "--resume")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert_same(straight, stopped)
