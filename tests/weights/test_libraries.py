"""Same state in, same output and gradients: our layers and blocks against those of other libraries."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision.models
from torch import nn

import dwsep

timm = pytest.importorskip("timm", reason="the comparison needs timm")
N = dwsep.nn


def timm_blocks():
    from timm.layers import MixedConv2d, SeparableConv2d, SeparableConvNormAct
    from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual, SqueezeExcite
    from timm.models.convnext import ConvNeXtBlock
    from timm.models.xception import Block
    from timm.models.xception_aligned import SeparableConv2d as AlignedSeparableConv2d

    se = partial(SqueezeExcite, rd_channels=4)
    return {
        "SeparableConv2d": (SeparableConv2d(8, 12, 3, 2), N.DepthwiseSeparableConv2d(8, 12, 3, 2)),
        "SeparableConv2d, bias, dilation": (
            SeparableConv2d(8, 12, 5, dilation=2, bias=True), N.DepthwiseSeparableConv2d(8, 12, 5, dilation=2)
        ),
        "SeparableConv2d, multiplier": (
            SeparableConv2d(8, 12, 3, channel_multiplier=2), N.DepthwiseSeparableConv2d(8, 12, depth_multiplier=2)
        ),
        "SeparableConv2d, same": (
            SeparableConv2d(8, 12, 3, 2, padding="same"), N.DepthwiseSeparableConv2d(8, 12, 3, 2, "same_tf")
        ),
        "SeparableConvNormAct": (
            SeparableConvNormAct(8, 12, 3), N.DepthwiseSeparableConv2d(8, 12, norm="batch", activation="relu")
        ),
        "AlignedSeparableConv2d": (
            AlignedSeparableConv2d(8, 12, 3, norm_layer=nn.BatchNorm2d),
            N.DepthwiseSeparableConv2d(8, 12, norm="batch", inner_norm="batch", activation="relu", bias=False,
                                       inner_activation="relu"),
        ),
        "DepthwiseSeparableConv": (
            DepthwiseSeparableConv(8, 8, 3, act_layer=nn.SiLU),
            N.DepthwiseSeparableConv2d(8, 8, bias=False, norm="batch", inner_norm="batch", inner_activation="silu",
                                       residual="input"),
        ),
        "DepthwiseSeparableConv, stride, activation": (
            DepthwiseSeparableConv(8, 12, 5, 2, pw_act=True),
            N.DepthwiseSeparableConv2d(8, 12, 5, 2, bias=False, norm="batch", inner_norm="batch",
                                       inner_activation="relu", activation="relu"),
        ),
        "DepthwiseSeparableConv, squeeze and excite": (
            DepthwiseSeparableConv(8, 8, 3, se_layer=se),
            N.InvertedResidual(8, 8, expansion=1, squeeze_channels=4, activation="relu"),
        ),
        "InvertedResidual": (
            InvertedResidual(8, 8, 3, exp_ratio=4, act_layer=nn.ReLU6), N.InvertedResidual(8, 8, expansion=4)
        ),
        "InvertedResidual, no skip, stride, same": (
            InvertedResidual(8, 8, 5, 2, exp_ratio=2, pad_type="same", noskip=True, act_layer=nn.SiLU),
            N.InvertedResidual(8, 8, 5, 2, "same_tf", expansion=2, activation="silu"),
        ),
        "InvertedResidual, squeeze and excite, dilation": (
            InvertedResidual(8, 8, 3, dilation=2, exp_ratio=3, se_layer=se, act_layer=nn.Hardswish),
            N.InvertedResidual(8, 8, dilation=2, expansion=3, squeeze_channels=4, activation="hardswish",
                               squeeze_activation="hardswish"),
        ),
        "InvertedResidual, ratio 1": (
            InvertedResidual(8, 8, 3, exp_ratio=1),
            N.InvertedResidual(8, 8, expansion=1, always_expand=True, activation="relu"),
        ),
        "Xception block": (Block(8, 12, 2, 2), N.XceptionBlock(8, 12, stride=2)),
        "Xception block, 3, start without": (
            Block(8, 12, 3, 1, start_with_relu=False, grow_first=False),
            N.XceptionBlock(8, 12, repeats=3, start_with_activation=False, grow_first=False),
        ),
        "Xception block, identity": (Block(8, 8, 3, 1), N.XceptionBlock(8, 8, repeats=3)),
        "ConvNeXtBlock": (ConvNeXtBlock(8, ls_init_value=0.5), N.ConvNeXtBlock(8)),
        "MixedConv2d": (
            MixedConv2d(10, 10, [3, 5, 7], depthwise=True, bias=True), N.MixConv2d(10, (3, 5, 7))
        ),
    }  # fmt: skip


def torchvision_blocks():
    from torchvision.models import convnext, efficientnet, mobilenetv2, mobilenetv3

    v3 = mobilenetv3.InvertedResidualConfig(8, 5, 24, 8, True, "HS", 1, 1, 1.0)
    mbconv = efficientnet.MBConvConfig(6, 3, 2, 8, 16, 1)
    return {
        "MobileNetV2": (mobilenetv2.InvertedResidual(8, 8, 1, 6), N.InvertedResidual(8, 8)),
        "MobileNetV2, ratio 1": (
            mobilenetv2.InvertedResidual(8, 12, 2, 1), N.InvertedResidual(8, 12, stride=2, expansion=1)
        ),
        "MobileNetV3": (
            mobilenetv3.InvertedResidual(v3, partial(nn.BatchNorm2d, eps=0.001)),
            N.InvertedResidual(8, 8, 5, hidden_channels=24, squeeze_channels=8, squeeze_gate="hardsigmoid",
                               activation="hardswish", norm=partial(nn.BatchNorm2d, eps=0.001)),
        ),
        "EfficientNet": (
            efficientnet.MBConv(mbconv, 0.0, nn.BatchNorm2d),
            N.InvertedResidual(8, 16, 3, 2, squeeze_channels=2, squeeze_activation="silu", activation="silu"),
        ),
        "ConvNeXt": (convnext.CNBlock(8, 0.5, 0.0), N.ConvNeXtBlock(8)),
    }  # fmt: skip


def smp_blocks():
    smp = pytest.importorskip("segmentation_models_pytorch", reason="the comparison needs segmentation-models-pytorch")
    from segmentation_models_pytorch.decoders.deeplabv3 import decoder

    assert smp
    return {
        "SeparableConv2d": (
            decoder.SeparableConv2d(8, 12, 3, 2, 1), N.DepthwiseSeparableConv2d(8, 12, stride=2)
        ),
        "SeparableConv2d, dilation": (
            decoder.SeparableConv2d(8, 12, 3, padding=4, dilation=4, bias=False),
            N.DepthwiseSeparableConv2d(8, 12, dilation=4, bias=False),
        ),
        "ASPPSeparableConv": (
            decoder.ASPPSeparableConv(8, 12, 2),
            N.DepthwiseSeparableConv2d(8, 12, dilation=2, bias=False, norm="batch", activation="relu"),
        ),
        "ASPP": (
            decoder.ASPP(8, 12, (1, 2, 3), separable=True, dropout=0.0),
            N.SeparableASPP(8, 12, (1, 2, 3), dropout=0.0),
        ),
    }  # fmt: skip


def bsconv_blocks():
    bsconv = pytest.importorskip("bsconv.pytorch", reason="the comparison needs bsconv")
    return {
        "BSConvU": (bsconv.BSConvU(8, 12, 3, 2, 1), N.BlueprintSeparableConv2d(8, 12, stride=2)),
        "BSConvU, norm": (
            bsconv.BSConvU(8, 12, 3, padding=2, dilation=2, with_bn=True),
            N.BlueprintSeparableConv2d(8, 12, dilation=2, inner_norm="batch"),
        ),
        "BSConvU, pointwise first": (
            bsconv.BSConvU(8, 12, 3, padding=1),
            N.DepthwiseSeparableConv2d(8, 12, order="pointwise_first"),
        ),
        "BSConvS": (bsconv.BSConvS(32, 12, 3, padding=1), N.BlueprintSeparableConv2d(32, 12, variant="S")),
        "BSConvS, norm": (
            bsconv.BSConvS(32, 12, 3, padding=1, p=0.5, with_bn=True, bias=False),
            N.BlueprintSeparableConv2d(32, 12, variant="S", subspace=0.5, inner_norm="batch", bias=False),
        ),
    }  # fmt: skip


LIBRARIES = {"timm": timm_blocks, "torchvision": torchvision_blocks, "smp": smp_blocks, "bsconv": bsconv_blocks}


def randomise(module):
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)


def gradients(module, x, names):
    """Output, gradient of the input, and those of the named parameters."""
    x = x.clone().requires_grad_()
    out = module(x)
    parameters = dict(module.named_parameters())
    chosen = [parameters[name] for name in names]
    grads = torch.autograd.grad((out * weights_like(out)).sum() / x[0].numel(), [x, *chosen])
    return out, *grads


def weights_like(out):
    return torch.linspace(-1, 1, out.numel()).view(out.shape)


def check_equal(theirs, ours, report, x):
    pairs = [(m.name, m.source) for m in report.matched if m.name in dict(ours.named_parameters())]
    for training in (True, False):
        theirs.train(training)
        ours.train(training)
        expected = gradients(theirs, x, [source for _, source in pairs])
        actual = gradients(ours, x, [name for name, _ in pairs])
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a.reshape(e.shape), e, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_blocks_take_the_state_of_their_library(library):
    for name, (theirs, ours) in LIBRARIES[library]().items():
        randomise(theirs)
        report = dwsep.weights.load(ours, theirs, library=library)
        assert not report.missing, name
        assert not report.unused, name
        assert all(match.what == "0" for match in report.filled if "num_batches" not in match.name)
        channels = next(iter(theirs.parameters())).shape[1] if library == "bsconv" else 8
        channels = 10 if name == "MixedConv2d" else channels
        check_equal(theirs, ours, report, torch.randn(2, channels, 11, 10))
        by_search = dwsep.weights.load(ours, theirs.state_dict())  # any library
        assert {m[:2] for m in by_search.matched} == {m[:2] for m in report.matched}, name


def test_orthogonality_loss_is_that_of_bsconv():
    bsconv = pytest.importorskip("bsconv.pytorch", reason="the comparison needs bsconv")
    theirs = bsconv.BSConvS(32, 12, 3, padding=1)
    ours = N.BlueprintSeparableConv2d(32, 12, variant="S")
    dwsep.weights.load(ours, theirs)
    torch.testing.assert_close(ours.orthogonality_loss(), theirs._reg_loss())


def test_a_block_out_of_a_network_by_names():
    network = timm.create_model("mobilenetv2_100").eval()
    theirs = network.blocks[2][1]
    ours = N.InvertedResidual(32, 32).eval()
    report = dwsep.weights.load(ours, network, names={"": "blocks.2.1"})
    assert not report.unused  # of that block
    x = torch.randn(1, 32, 7, 7)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert "18 matched" in report.summary
    assert ["expand.weight", "blocks.2.1.conv_pw.weight", "copied"] in [
        line.split() for line in str(report).splitlines()
    ]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_of_pytorch(tmp_path, suffix):
    theirs = torchvision.models.mobilenetv2.InvertedResidual(8, 8, 1, 6)
    path = tmp_path / f"block{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": theirs.state_dict(), "epoch": 3}, path)
    else:
        import safetensors.torch

        safetensors.torch.save_file(theirs.state_dict(), path)
    ours = N.InvertedResidual(8, 8)
    dwsep.weights.load(ours, path)
    x = torch.randn(2, 8, 7, 7)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)


def test_faults_change_nothing_and_are_named():
    ours = N.InvertedResidual(8, 8)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    theirs = torchvision.models.mobilenetv2.InvertedResidual(8, 8, 1, 6).state_dict()
    lacking = {name: value for name, value in theirs.items() if name != "conv.2.weight"}
    wrong = {**theirs, "conv.0.0.weight": torch.ones(3, 8, 1, 1)}
    cases = [
        (lacking, {}, dwsep.ArgumentError, r"project\.weight is missing"),
        ({**theirs, "more": torch.ones(1)}, {}, dwsep.ArgumentError, "more is unused"),
        (
            wrong,
            {},
            dwsep.ArgumentError,
            r"expand\.weight has shape \(48, 8, 1, 1\), conv\.0\.0\.weight \(3, 8, 1, 1\)",
        ),
        (theirs, {"names": {"body": "conv"}}, dwsep.ArgumentError, "names: the model has no module 'body'"),
        (theirs, {"library": "jax"}, dwsep.ArgumentError, "library: unknown name 'jax'"),
        (theirs, {"library": "smp"}, dwsep.ArgumentError, "is missing"),
        (3, {}, TypeError, "source must be a module, a dict of tensors or a path"),
        ({"a": 3}, {}, TypeError, "source must hold tensors alone"),
    ]
    for source, options, error, message in cases:
        with pytest.raises(error, match=message):
            dwsep.weights.load(ours, source, **options)
        assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    report = dwsep.weights.load(ours, lacking, strict=False)
    assert report.missing == ("project.weight",)
    with pytest.raises(TypeError, match="model must be"):
        dwsep.weights.load(theirs, ours)


def test_unknown_and_damaged_files(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(dwsep.ArgumentError, match="unknown kind of file"):
        dwsep.weights.read(tmp_path / "a.onnx")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(dwsep.ArgumentError, match="holds no state dict but a list"):
        dwsep.weights.read(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        dwsep.weights.read(tmp_path)
