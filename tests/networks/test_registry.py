"""Networks by name, and weights from files."""

from __future__ import annotations

import pytest
import torch

from dwsep import networks
from dwsep.accelerate import accelerate_
from dwsep.analysis import count
from dwsep.networks import _safetensors
from dwsep.networks._weights import ModelInfo, load_state, read_model, save_model
from dwsep.nn import DepthwiseConv2d, LightweightConv1d

OPTIONS = {"width_multiplier": 0.125, "stem": "small"}


def create(name="mobilenet_v1", **options):
    defaults = {"vocabulary_size": 9} if name.startswith("text") else OPTIONS
    return networks.create(name, **{"num_classes": 3, "in_channels": 1, **defaults, **options})


@pytest.fixture
def saved(tmp_path):
    model = create()
    with torch.no_grad():
        model.blocks[3].norm.running_mean.uniform_()
    info = ModelInfo("mobilenet_v1", 3, 1, OPTIONS, ("a", "b", "c"), (0.5,), (0.25,), (28, 28), 7)
    path = tmp_path / "model.safetensors"
    save_model(path, model, info)
    return path, model, info


SMALLEST = {
    "deeplab_v3_plus": {"width_multiplier": 0.25, "decoder_channels": 64},
    "series_separable": {"width_multiplier": 0.25},
    "text_light": {"vocabulary_size": 9, "width_multiplier": 0.25},
    "text_separable": {"vocabulary_size": 9, "width_multiplier": 0.25},
    "xception": {**OPTIONS, "middle_blocks": 1},
}


def example(task):
    """An input of every task, and the shape of what networks make of it, but for the classes."""
    if task == "text":
        return torch.tensor([[2, 8, 3], [4, 0, 0]]), ()
    return (torch.randn(2, 1, 30), ()) if task == "series" else (torch.randn(2, 1, 28, 28), (28, 28))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", networks.names())
def test_create_builds_every_network(name, dense):
    options = SMALLEST.get(name, OPTIONS)
    task = networks.task_of(name)
    x, rest = example(task)
    channels = {} if task == "text" else {"in_channels": 1}
    if not name.endswith("_dense"):
        channels["dense"] = dense
    model = networks.create(name, num_classes=3, **channels, **options)
    assert model.training
    out = model(x)
    assert out.shape == (2, 3, *(rest if task == "segment" else ()))
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert any(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("name", [name for name in networks.names() if not name.endswith("_dense")])
def test_every_network_has_a_dense_twin_that_costs_more(name):
    costs = []
    for dense in (False, True):
        task = networks.task_of(name)
        x, _ = example(task)
        channels = {} if task == "text" else {"in_channels": 1}
        model = networks.create(name, num_classes=3, dense=dense, **channels, **SMALLEST.get(name, OPTIONS))
        costs.append(count(model, x))
        separable = [m for m in model.modules() if isinstance(m, (DepthwiseConv2d, LightweightConv1d))]
        assert bool(separable) != dense
    assert costs[1].macs > 1.5 * costs[0].macs
    assert costs[1].parameters > costs[0].parameters


@pytest.mark.parametrize("name", [name for name in networks.names() if not name.endswith("_dense")])
def test_every_network_runs_fused(name):
    task = networks.task_of(name)
    x, _ = example(task)
    channels = {} if task == "text" else {"in_channels": 1}
    model = networks.create(name, num_classes=3, **channels, **SMALLEST.get(name, OPTIONS))
    model(x)  # statistics that are not the initial ones
    model.eval()
    with torch.no_grad():
        expected = model(x)
        report = accelerate_(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert report.fused  # of text_light all but its convolutions, which run natively as they are
    depthwise = sum(isinstance(m, DepthwiseConv2d) for m in model.modules())
    assert len({line.name for line in report.fused if "depthwise" in line.what}) == depthwise
    assert all("itself" in line.reason for line in report.left_alone), report


def test_names_lists_what_a_task_has():
    assert networks.names("segment") == ("deeplab_v3_plus",)
    assert sorted(sum((networks.names(task) for task in ("classify", "segment", "text", "series")), ())) == list(
        networks.names()
    )
    with pytest.raises(ValueError, match="task: unknown name 'audio'"):
        networks.names("audio")


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("mobilenet_v9", {}, ValueError, "unknown name 'mobilenet_v9'; .*'mobilenet_v1', 'mobilenet_v1_dense'"),
        ("text_light", {}, TypeError, "text_light takes tokens and has no in_channels, got 1"),
        ("mobilenet_v2", {"dense": 1}, ValueError, "dense must be True or False, got 1"),
        ("mobilenet_v1", {"dense": "no"}, ValueError, "dense must be True or False, got 'no'"),
        ("mobilenet_v3_small", {"dropout": 1}, ValueError, r"dropout must be in \[0, 1\), got 1"),
        (
            "mobilenet_v1",
            {"width": 1},
            TypeError,
            "no option 'width', valid: 'width_multiplier', 'stem', 'dropout', 'residual', 'dense'",
        ),
        ("mobilenet_v1", {"make_block": None}, TypeError, "no option 'make_block'"),
        ("mobilenet_v1", {"stem": "large"}, ValueError, "valid names are 'imagenet', 'small'"),
        ("mobilenet_v1", {"weights": True}, TypeError, "weights must be None or the path .* got bool"),
        ("mobilenet_v1", {"weights": "no/such.safetensors"}, FileNotFoundError, "no/such.safetensors does not exist"),
    ],
)
def test_create_refuses(name, options, error, message):
    with pytest.raises(error, match=message):
        create(name, **options)


def test_create_loads_weights_bit_for_bit(saved):
    path, model, _ = saved
    loaded = create(weights=path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_read_model_gives_back_what_was_said(saved):
    path, _, info = saved
    assert read_model(path)[1] == info


def test_save_model_keeps_the_memory_format_out_of_the_file(saved, tmp_path):
    path, model, info = saved
    save_model(tmp_path / "last.safetensors", model.to(memory_format=torch.channels_last), info)
    before, after = read_model(path)[0], read_model(tmp_path / "last.safetensors")[0]
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name])
        assert after[name].is_contiguous()


def test_create_refuses_weights_of_another_network(saved):
    with pytest.raises(ValueError, match="holds weights of 'mobilenet_v1', not of 'mobilenet_v1_dense'"):
        create("mobilenet_v1_dense", weights=saved[0])


def test_create_refuses_weights_of_another_width(saved):
    with pytest.raises(ValueError, match=r"does not fit the network: .* the network needs .*; and \d+ more"):
        create(weights=saved[0], width_multiplier=0.5)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.999])
def test_create_refuses_truncated_weights(saved, kept):
    path = saved[0]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match="truncated, damaged or no safetensors file"):
        create(weights=path)


def test_create_refuses_a_safetensors_file_of_somebody_else(tmp_path):
    path = tmp_path / "other.safetensors"
    _safetensors.write(path, {"weight": torch.ones(2)}, {})
    with pytest.raises(ValueError, match="is not a checkpoint of dwsep"):
        create(weights=path)


def test_create_refuses_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder, not a file"):
        create(weights=tmp_path)


def test_load_state_leaves_the_model_alone_when_it_refuses(saved):
    path, model, _ = saved
    state, _ = read_model(path)
    state["blocks.0.depthwise.weight"] += 1
    del state["classifier.bias"]
    state["surplus"] = torch.ones(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"classifier\.bias is missing; surplus is unexpected"):
        load_state(model, state, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_write_leaves_the_old_file_when_it_fails(saved, monkeypatch):
    path, model, info = saved
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(_safetensors.os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        save_model(path, model, info)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_write_leaves_files_that_others_may_read(saved):
    path = saved[0]
    beside = path.with_name("beside")
    beside.write_bytes(b"")
    assert path.stat().st_mode == beside.stat().st_mode


def test_safetensors_missing_names_the_extra(saved, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'pip install "dwsep\[train\]"'):
        create(weights=saved[0])
