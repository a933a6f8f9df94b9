"""``dwsep evaluate`` says how well a saved network does."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from dwsep import networks
from dwsep.cli.main import app
from dwsep.networks._weights import ModelInfo, save_model
from dwsep.training.data import (
    FASHION_MNIST_CLASSES,
    Normalisation,
    channel_statistics,
    encode_idx,
    load_fashion_mnist_subset,
    load_idx,
)

OPTIONS = {"width_multiplier": 0.125, "stem": "small"}


@pytest.fixture(scope="module")
def idx(tmp_path_factory):
    folder = tmp_path_factory.mktemp("idx")
    data = load_fashion_mnist_subset("test")
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(encode_idx(data.images[:70, 0]))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(encode_idx(data.labels[:70].to(torch.uint8)))
    return folder


@pytest.fixture
def saved(idx, tmp_path):
    torch.manual_seed(0)
    model = networks.create("mobilenet_v1", num_classes=10, in_channels=1, **OPTIONS)
    mean, std = channel_statistics(load_idx(idx, "test").images)
    model(Normalisation(mean, std)(load_idx(idx, "test").images))  # gives the norms statistics of their own
    info = ModelInfo("mobilenet_v1", 10, 1, OPTIONS, FASHION_MNIST_CLASSES, mean, std, (28, 28), 1)
    path = tmp_path / "model.safetensors"
    save_model(path, model, info)
    return path, model, Normalisation(mean, std)


@pytest.fixture
def evaluate(saved, idx):
    def invoke(*arguments, checkpoint=saved[0]):
        where = ["--data", "fashion-mnist", "--data-dir", str(idx), "--checkpoint", str(checkpoint)]
        return CliRunner().invoke(app, ["evaluate", *where, *arguments])

    return invoke


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
def test_evaluate_reports_what_the_network_answers(saved, idx, evaluate, memory_format):
    _, model, normalisation = saved
    data = load_idx(idx, "test")
    with torch.no_grad():
        answers = model.eval()(normalisation(data.images)).argmax(1)
    finished = evaluate("--json", "--memory-format", memory_format)
    assert finished.exit_code == 0, finished.stderr
    report = json.loads(finished.stdout)
    assert report["images"] == 70
    assert report["accuracy"] == pytest.approx((answers == data.labels).double().mean().item())
    assert [entry["name"] for entry in report["classes"]] == list(FASHION_MNIST_CLASSES)
    for index, entry in enumerate(report["classes"]):
        mine = data.labels == index
        assert entry["images"] == int(mine.sum())
        assert entry["recall"] == pytest.approx((answers[mine] == index).double().mean().item())
        assert report["confusion"][index] == torch.bincount(answers[mine], minlength=10).tolist()


def test_evaluate_prints_a_table(evaluate):
    finished = evaluate()
    assert finished.exit_code == 0, finished.stderr
    assert all(name in finished.stdout for name in FASHION_MNIST_CLASSES)
    report = json.loads(evaluate("--json").stdout)
    last = f"accuracy {100 * report['accuracy']:.2f} %, loss {report['loss']:.4f}, 70 images"
    assert finished.stdout.splitlines()[-1] == last


def test_evaluate_does_not_depend_on_the_batch_size(evaluate):
    small, large = (json.loads(evaluate("--json", "--batch-size", size).stdout) for size in ("7", "100"))
    assert small["confusion"] == large["confusion"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--split", "val"], ["split: unknown name 'val'", "'train', 'test'"]),
        (["--split", "train"], ["train-images-idx3-ubyte", "dataset-fashion-mnist"]),
        (["--data", "cifar"], ["data", "'folder'"]),
        (["--precision", "int8"], ["precision", "'bfloat16'"]),
    ],
)
def test_evaluate_says_in_one_line_what_is_wrong(evaluate, arguments, words):
    finished = evaluate(*arguments)
    assert finished.exit_code == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: ")
    assert len(finished.stderr.strip().splitlines()) == 1
    assert all(word in finished.stderr for word in words), finished.stderr


def test_evaluate_refuses_a_missing_or_truncated_file(evaluate, saved, tmp_path):
    missing = evaluate(checkpoint=tmp_path / "nothing.safetensors")
    assert missing.exit_code == 2
    assert "nothing.safetensors does not exist" in missing.stderr
    saved[0].write_bytes(saved[0].read_bytes()[:5000])
    truncated = evaluate()
    assert truncated.exit_code == 2
    assert "is truncated, damaged or no safetensors file" in truncated.stderr


def test_evaluate_refuses_images_of_other_classes(saved, tmp_path):
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(2):
            Image.new("L", (28, 28)).save(tmp_path / "pets" / name / f"{index}.png")
    where = ["--data", "folder", "--data-dir", str(tmp_path / "pets")]
    finished = CliRunner().invoke(app, ["evaluate", "--checkpoint", str(saved[0]), *where])
    assert finished.exit_code == 2
    assert "knows the classes T-shirt/top, " in finished.stderr
    assert "pets test has cat, dog" in finished.stderr


def test_evaluate_names_a_bad_image_or_skips_it(saved, tmp_path):
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    normalisation = saved[2]
    pets = tmp_path / "pets"
    for name in ("cat", "dog"):
        (pets / name).mkdir(parents=True)
        for index in range(6):
            Image.new("L", (28, 28), 40 * index).save(pets / name / f"{index}.png")
    (pets / "cat" / "3.png").write_bytes(b"no image")
    small = networks.create("mobilenet_v1", num_classes=2, in_channels=1, **OPTIONS)
    info = ModelInfo("mobilenet_v1", 2, 1, OPTIONS, ("cat", "dog"), normalisation.mean, normalisation.std, (28, 28), 1)
    save_model(tmp_path / "pets.safetensors", small, info)

    def invoke(*arguments):
        where = ["--data", "folder", "--data-dir", str(pets), "--split", "train", "--json"]
        checkpoint = ["--checkpoint", str(tmp_path / "pets.safetensors")]
        return CliRunner().invoke(app, ["evaluate", *checkpoint, *where, *arguments])

    refused = invoke()
    assert refused.exit_code == 2
    assert str(pets / "cat" / "3.png") in refused.stderr
    with pytest.warns(UserWarning, match="1 of .* images were left out"):
        finished = invoke("--on-bad-file", "skip")
    assert finished.exit_code == 0, finished.output
    unknown = invoke("--on-bad-file", "mend")
    assert "on_bad_file: Input should be 'stop' or 'skip', got 'mend'" in unknown.stderr
