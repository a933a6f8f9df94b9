"""``dwsep train`` from the command line, on a folder of images small enough for a test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from dwsep.cli.main import app
from dwsep.networks._weights import read_model
from dwsep.training.data import encode_idx, load_fashion_mnist_subset
from dwsep.training.log import read_log
from dwsep.training.loop import CHECKPOINT_FILE, LOG_FILE, MODEL_FILE

QUICK = ["--epochs", "2", "--batch-size", "16", "--width-multiplier", "0.125", "--threads", "1"]


@pytest.fixture(scope="module")
def idx(tmp_path_factory):
    """The first few images of the subset in the layout of the full data set."""
    folder = tmp_path_factory.mktemp("idx")
    for split, prefix, count in (("train", "train", 64), ("test", "t10k", 40)):
        data = load_fashion_mnist_subset(split)
        images, labels = data.images[:count, 0], data.labels[:count].to(torch.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(encode_idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(encode_idx(labels))
    return folder


@pytest.fixture
def run(idx, tmp_path):
    def invoke(*arguments, output_dir=tmp_path / "run", quick=QUICK):
        where = ["--data", "fashion-mnist", "--data-dir", str(idx), "--output-dir", str(output_dir)]
        return CliRunner().invoke(app, ["train", *where, *quick, *map(str, arguments)])

    return invoke


def test_train_prints_the_accuracy_and_leaves_the_files(run, tmp_path):
    finished = run()
    assert finished.exit_code == 0, finished.stderr
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.iterdir()) == sorted([CHECKPOINT_FILE, MODEL_FILE, LOG_FILE])
    last = read_log(folder / LOG_FILE)[-1]
    assert finished.stdout == (
        f"mobilenet_v1: test accuracy {100 * last['test_accuracy']:.2f} % after 2 epochs, {folder / MODEL_FILE}\n"
    )
    assert "epoch 2/2" in finished.stderr
    _, info = read_model(folder / MODEL_FILE)
    assert info.options == {"width_multiplier": 0.125, "stem": "small"}


def test_train_takes_every_option(run, tmp_path):
    finished = run(
        *["--network", "mobilenet_v1_dense", "--stem", "imagenet", "--residual", "--optimizer", "sgd", "--lr", 0.05],
        *["--weight-decay", 0.001, "--warmup-epochs", 0.25, "--label-smoothing", 0.2, "--augment", "--seed", 5],
        *["--precision", "bfloat16", "--memory-format", "contiguous"],
    )
    assert finished.exit_code == 0, finished.stderr
    config = read_log(tmp_path / "run" / LOG_FILE)[0]["config"]
    expected = {
        "network": "mobilenet_v1_dense",
        "network_options": {"width_multiplier": 0.125, "stem": "imagenet", "residual": True},
        "data": "fashion-mnist",
        "epochs": 2,
        "batch_size": 16,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "weight_decay": 0.001,
        "warmup_epochs": 0.25,
        "label_smoothing": 0.2,
        "augment": True,
        "seed": 5,
        "precision": "bfloat16",
        "memory_format": "contiguous",
    }
    assert {name: config[name] for name in expected} == expected


def test_train_reads_a_folder_of_images(tmp_path):
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for name, colour in (("dark", 20), ("light", 200)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(10):
            Image.new("L", (12, 12), colour + index).save(tmp_path / "pictures" / name / f"{index}.png")
    finished = CliRunner().invoke(
        app,
        [
            *["train", "--data", "folder", "--data-dir", str(tmp_path / "pictures"), "--image-size", "12", "--grey"],
            *["--output-dir", str(tmp_path / "run"), *QUICK, "--batch-size", "4"],
        ],
    )
    assert finished.exit_code == 0, finished.stderr
    _, info = read_model(tmp_path / "run" / MODEL_FILE)
    assert (info.class_names, info.in_channels, info.image_size) == (("dark", "light"), 1, (12, 12))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--network", "resnet"], ["unknown name 'resnet'", "'mobilenet_v1', 'mobilenet_v1_dense'"]),
        (["--stem", "tiny"], ["stem: unknown name 'tiny'", "'imagenet', 'small'"]),
        (["--epochs", "0"], ["epochs", "0"]),
        (["--lr", "nan"], ["learning_rate", "nan"]),
        (["--width-multiplier", "-1"], ["width_multiplier must be a positive number, got -1.0"]),
        (["--precision", "float16"], ["precision", "'float32' or 'bfloat16'", "'float16'"]),
        (["--memory-format", "nhwc"], ["memory_format", "'channels_last' or 'contiguous'"]),
        (["--data", "cifar"], ["data must be a folder of images", "got 'cifar', which does not exist"]),
        (["--data", __file__], ["data must be a folder of images", "which is a file; dwsep train text, series and"]),
        (["--data-dir", "no/such/folder"], ["no/such/folder does not exist", "dataset-fashion-mnist"]),
        (["--data", "folder", "--data-dir", "no/such/folder"], ["no/such/folder does not exist"]),
        (["--batch-size", "65"], ["batch_size must be at most 64, the images of ", "got 65"]),
        (["--resume"], ["holds no checkpoint.safetensors to resume"]),
        (["--resume", "--overwrite"], ["--resume and --overwrite exclude each other"]),
    ],
)
def test_train_says_in_one_line_what_is_wrong(run, tmp_path, arguments, words):
    finished = run(*arguments)
    assert finished.exit_code == 2
    assert finished.stdout == ""
    line = finished.stderr.strip()
    assert line.startswith("error: ")
    assert "\n" not in line
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_train_protects_an_earlier_run(run, tmp_path):
    assert run().exit_code == 0
    content = (tmp_path / "run" / MODEL_FILE).read_bytes()
    refused = run("--seed", 1)
    assert refused.exit_code == 2
    assert "holds an earlier run: --resume, --overwrite or another --output-dir" in refused.stderr
    assert (tmp_path / "run" / MODEL_FILE).read_bytes() == content
    assert run("--seed", 1, "--overwrite").exit_code == 0
    assert (tmp_path / "run" / MODEL_FILE).read_bytes() != content


def test_train_refuses_to_resume_with_other_settings(run):
    assert run().exit_code == 0
    refused = run("--resume", "--seed", 9)
    assert refused.exit_code == 2
    assert "was made with other settings: seed: 0, not 9" in refused.stderr


def test_train_refuses_to_resume_a_truncated_checkpoint(run, tmp_path):
    assert run().exit_code == 0
    path = tmp_path / "run" / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:-100])
    refused = run("--resume")
    assert refused.exit_code == 2
    assert "checkpoint.safetensors is truncated, damaged or no safetensors file" in refused.stderr


def test_train_interrupted_in_a_process_of_its_own_goes_on_bit_for_bit(run, idx, tmp_path):
    longer = ["--epochs", "12", *QUICK[2:]]
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    command = [sys.executable, "-m", "dwsep.cli", "train", "--data", "fashion-mnist", "--data-dir", str(idx), *longer]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [*command, "--output-dir", str(stopped)],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (stopped / CHECKPOINT_FILE).exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no epoch was finished in two minutes"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert f"go on with: dwsep train --resume --output-dir {stopped}" in " ".join(stderr.split())
    assert "Traceback" not in stderr
    assert not (stopped / MODEL_FILE).exists()

    resumed = CliRunner().invoke(app, ["train", "--resume", "--output-dir", str(stopped), "--threads", "1"])
    assert resumed.exit_code == 0, resumed.stderr
    assert run(quick=longer, output_dir=straight).exit_code == 0
    (first, _), (second, _) = read_model(stopped / MODEL_FILE), read_model(straight / MODEL_FILE)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((stopped / LOG_FILE).read_text().splitlines()[0])["type"] == "header"
