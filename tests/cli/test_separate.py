"""``dwsep separate`` converts a saved network within a budget and writes one that loads again."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import dwsep
from dwsep import networks
from dwsep.cli.main import app
from dwsep.networks._weights import ModelInfo, read_model, save_model
from dwsep.training.data import Normalisation, encode_idx, load_fashion_mnist_subset

OPTIONS = {"width_multiplier": 0.25, "stem": "small"}


def run(*arguments):
    return CliRunner().invoke(app, ["separate", *map(str, arguments)])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = networks.create("mobilenet_v1_dense", num_classes=10, in_channels=1, **OPTIONS)
    model(torch.randn(4, 1, 28, 28))
    path = tmp_path_factory.mktemp("dense") / "model.safetensors"
    save_model(path, model, ModelInfo("mobilenet_v1_dense", 10, 1, OPTIONS, (), (0.3,), (0.35,), (28, 28), 1))
    return path


def test_separate_keeps_the_budget_and_its_file_loads(saved, tmp_path):
    output, page = tmp_path / "separated.safetensors", tmp_path / "report.html"
    finished = run(
        "mobilenet_v1_dense", "--checkpoint", saved, "--macs", 0.4, "--data", "fashion-mnist-subset", "--images", 64,
        "--output", output, "--html", page, "--json", "--exclude", "blocks.0",
    )  # fmt: skip
    assert finished.exit_code == 0, finished.stderr
    report = json.loads(finished.stdout)
    assert 0.3 < report["macs_after"] / report["macs_before"] <= 0.4
    assert {layer["name"]: layer["reason"] for layer in report["layers"]}["blocks.0.conv"] == "in exclude"
    assert "blocks.1.conv" in page.read_text()
    assert "fitting" in finished.stderr
    model = networks.create("mobilenet_v1_dense", num_classes=10, in_channels=1, **OPTIONS)
    dwsep.convert.load_(model, output)
    info = read_model(output)[1]
    assert (info.network, info.options, info.mean) == ("mobilenet_v1_dense", OPTIONS, (0.3,))
    assert info.structure == dwsep.convert.structure_of(model)
    x = torch.randn(1, 1, 28, 28)
    assert dwsep.analysis.count(model, x).macs == report["macs_after"]
    dense = networks.create("mobilenet_v1_dense", num_classes=10, in_channels=1, weights=saved, **OPTIONS)
    x = Normalisation((0.3,), (0.35,))(load_fashion_mnist_subset("test").images[:64])
    with torch.no_grad():
        wanted, made = dense.eval()(x), model.eval()(x)
    assert float((made - wanted).norm() / wanted.norm()) == pytest.approx(report["output_error"], rel=0.3)
    with pytest.raises(ValueError, match="does not fit the model"):
        dwsep.convert.load_(torch.nn.Linear(2, 2), output)
    with pytest.raises(ValueError, match="holds no network that dwsep separated"):
        dwsep.convert.load_(dense, saved)


def command(*arguments):
    finished = CliRunner().invoke(app, list(map(str, arguments)))
    assert finished.exit_code == 0, finished.stderr
    return finished.stdout


def test_a_separated_network_is_trained_evaluated_and_used_as_any_other(tmp_path):
    images = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for split, prefix, count in (("train", "train", 128), ("test", "t10k", 50)):
        subset = load_fashion_mnist_subset(split)
        pixels, labels = subset.images[:count, 0], subset.labels[:count].to(torch.uint8)
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(encode_idx(pixels))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(encode_idx(labels))
    images.fromarray(subset.images[0, 0].numpy()).save(tmp_path / "shoe.png")
    data = ["--data", "fashion-mnist", "--data-dir", tmp_path]
    quick = ["--epochs", 2, "--batch-size", 32, "--width-multiplier", 0.125]
    dense, separated, tuned = tmp_path / "dense", tmp_path / "separated.safetensors", tmp_path / "tuned"
    command("train", *data, *quick, "--network", "mobilenet_v1_dense", "--output-dir", dense)
    teacher = dense / "model.safetensors"
    command("separate", "mobilenet_v1_dense", "--checkpoint", teacher, "--macs", 0.5, *data, "--output", separated)
    start = ["--start-from", separated, "--distill-from", teacher, "--output-dir", tuned]
    said = command("train", *data, *quick, *start)
    assert said.startswith("mobilenet_v1_dense: test accuracy")
    structure = read_model(separated)[1].structure
    assert len(structure) > 3
    separated.rename(tmp_path / "moved.safetensors")
    assert command("train", "--resume", *data, "--output-dir", tuned) == said  # needs no file but its own
    weights = {}
    for path in (tmp_path / "moved.safetensors", tuned / "model.safetensors", tuned / "checkpoint.safetensors"):
        result = json.loads(command("evaluate", "--checkpoint", path, *data, "--json"))
        assert result["images"] == 50
        prediction = json.loads(command("predict", "--checkpoint", path, tmp_path / "shoe.png", "--json"))
        assert list(prediction["probabilities"]) == list(subset.class_names)
        model = networks.load_model(path)
        assert dwsep.convert.structure_of(model) == structure
        weights[path.parent.name, path.name] = model.state_dict()
    before, after, saved = weights.values()
    assert all(torch.equal(value, saved[name]) for name, value in after.items())
    name = f"{next(iter(structure))}.depthwise.weight"
    assert not torch.equal(before[name], after[name])


@pytest.mark.parametrize("where", [["--data"], ["--data", "folder", "--data-dir"]])
def test_calibration_takes_any_folder_of_images(saved, tmp_path, where):
    images = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pixels = load_fashion_mnist_subset("train").images[:20, 0].numpy()
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number, image in enumerate(pixels):
        images.fromarray(image).save(tmp_path / "photos" / ("more" if number % 2 else ".") / f"{number}.png")
    output = tmp_path / "separated.safetensors"
    finished = run(
        "mobilenet_v1_dense", "--checkpoint", saved, "--rank", 1, *where, tmp_path / "photos", "--images", 16,
        "--include", "blocks.2", "--output", output, "--json",
    )  # fmt: skip
    assert finished.exit_code == 0, finished.stderr
    assert "reading images" in finished.stderr
    assert "16/16" in finished.stderr
    layer = next(x for x in json.loads(finished.stdout)["layers"] if x["status"] == "separated")
    assert 0 < layer["output_error"] < layer["weight_error"]


def test_networks_for_other_data_than_images_are_refused(tmp_path):
    model = networks.create("series_separable", num_classes=3, in_channels=2)
    save_model(tmp_path / "model.safetensors", model, ModelInfo("series_separable", 3, 2, task="series"))
    finished = run("series_separable", "--checkpoint", tmp_path / "model.safetensors", "--rank", 1)
    assert finished.exit_code == 2
    assert "is of the task series, this command takes networks for images; in Python" in finished.stderr


def test_where_nothing_can_be_separated_nothing_is_written(saved, tmp_path):
    output = tmp_path / "separated.safetensors"
    finished = run("mobilenet_v1_dense", "--checkpoint", saved, "--error", 1e-9, "--output", output)
    assert finished.exit_code == 1
    assert "no rank keeps the error budget" in finished.stdout
    assert finished.stderr.strip().splitlines()[-1] == "no layer was separated: no network is written"
    assert not output.exists()


def test_an_interrupt_writes_nothing_and_says_so(saved, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("dwsep.convert.separate_", interrupted)
    output = tmp_path / "separated.safetensors"
    finished = run("mobilenet_v1_dense", "--checkpoint", saved, "--rank", 1, "--output", output)
    assert finished.exit_code == 130
    assert finished.stderr.strip().splitlines()[-1] == "interrupted: nothing is written"
    assert not output.exists()


@pytest.mark.parametrize("network", ["timm:resnet10t", "torchvision:resnet18"])
def test_separate_takes_networks_of_libraries(network, tmp_path):
    library, name = network.split(":")
    module = pytest.importorskip(library, reason=f"{library} is not installed")
    build = module.create_model if library == "timm" else module.models.get_model
    torch.manual_seed(1)
    trained = build(name, num_classes=7)
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "trained.pth")
    output = tmp_path / "out.safetensors"
    finished = run(
        network, "--checkpoint", tmp_path / "trained.pth", "--num-classes", 7, "--size", 32, "--rank", 2, "--output",
        output, "--include", "layer1", "--batch-size", 2,
    )  # fmt: skip
    assert finished.exit_code == 0, finished.stderr
    assert "separated" in finished.stdout
    assert "no --data" in finished.stderr
    model = build(name, num_classes=7)
    dwsep.convert.load_(model, output)
    assert torch.equal(model.state_dict()["bn1.weight"], trained.state_dict()["bn1.weight"])
    assert isinstance(model.layer1[0].conv1, dwsep.nn.DepthwiseSeparableConv2d)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["timm:resnet18"], ["exactly one of --error, --macs, --latency, --latency-ms, --rank", "got none"]),
        (["timm:resnet18", "--rank", "1", "--error", "0.1"], ["got --error and --rank"]),
        (["timm:resnet18", "--latency-ms", "0"], ["--latency-ms must be finite and above 0, got 0.0"]),
        (["timm:resnet18", "--rank", "1", "--data-dir", "photos"], ["--data-dir photos needs --data"]),
        (["timm:resnet18", "--rank", "1", "--output", "."], ["--output: . is a folder, name a file in it"]),
        (["timm:vit_tiny_patch16_224", "--rank", "1"], ["cannot run on an input of shape 1,3,32,32 (--size sets"]),
        (["timm:resnet10t", "--macs", "0.001"], ["macs cannot be met", "is the least that the layers allow"]),
        (
            ["timm:resnet10t", "--macs", "0.5", "--min-channels", "2000"],
            ["macs cannot be met", "no layer of the model"],
        ),
        (["timm:resnet1o", "--rank", "1"], ["timm has no 'resnet1o'", "close ones are resnet1"]),
        (["torchvision:resnet1o", "--rank", "1"], ["torchvision has no 'resnet1o'", "close ones are resnet1"]),
        (["keras:resnet", "--rank", "1"], ["unknown library 'keras'"]),
        (["resnet18", "--rank", "1"], ["unknown name 'resnet18'", "mobilenet_v1_dense", "timm:NAME"]),
        (["resnet18", "--rank", "1"], ["did you mean timm:resnet18 or torchvision:resnet18?"]),
        (["torchvision:raft_small", "--rank", "1"], ["torchvision:raft_small has no classes of images or pixels"]),
        (["mobilenet_v1_dense", "--rank", "1"], ["needs --checkpoint"]),
        (["timm:resnet18", "--rank", "1", "--checkpoint", "nothing.pth"], ["nothing.pth does not exist"]),
        (["timm:resnet18", "--rank", "1", "--data", "folder"], ["--data folder needs --data-dir"]),
        (["timm:resnet18", "--rank", "1", "--data", "photos"], ["--data: photos is neither a folder nor one of"]),
        (["timm:resnet18", "--rank", "1", "--memory-format", "nhwc"], ["memory_format: unknown name 'nhwc'"]),
        (["timm:resnet18", "--rank", "1", "--include", "layer9"], ["include: 'layer9' matches no module"]),
    ],
)
def test_separate_says_in_one_line_what_is_wrong(arguments, words):
    pytest.importorskip("timm", reason="timm is not installed")
    finished = run(*arguments, "--size", "32")
    assert finished.exit_code == 2
    assert finished.stdout == ""
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert all(word in last for word in words), finished.stderr
