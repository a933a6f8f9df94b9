"""``dwsep separate`` converts a saved network within a budget and writes one that loads again."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import dwsep
from dwsep import networks
from dwsep.cli.main import app
from dwsep.networks._weights import ModelInfo, save_model
from dwsep.training.data import Normalisation, load_fashion_mnist_subset

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
    texts = dwsep.convert.load_(model, output)
    assert texts["network"] == "mobilenet_v1_dense"
    assert ModelInfo.from_json(texts["model"]).options == OPTIONS
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
        (["timm:resnet18"], ["exactly one of error, macs", "got none"]),
        (["timm:resnet18", "--rank", "1", "--error", "0.1"], ["got error, rank"]),
        (["timm:resnet1o", "--rank", "1"], ["timm has no model 'resnet1o'"]),
        (["torchvision:resnet1o", "--rank", "1"], ["torchvision has no model 'resnet1o'"]),
        (["keras:resnet", "--rank", "1"], ["unknown library 'keras'"]),
        (["resnet18", "--rank", "1"], ["unknown name 'resnet18'", "mobilenet_v1_dense", "timm:NAME"]),
        (["mobilenet_v1_dense", "--rank", "1"], ["needs --checkpoint"]),
        (["timm:resnet18", "--rank", "1", "--checkpoint", "nothing.pth"], ["nothing.pth does not exist"]),
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
