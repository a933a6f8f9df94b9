"""Counts against PyTorch's own counter, fvcore, and what papers publish."""

import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dwsep
import dwsep.analysis.flops
from dwsep.analysis import count

# fvcore has no formula for scaled_dot_product_attention: its networks have none.
FEW = ("timm:mobilenetv2_100", "timm:efficientnet_b0", "torchvision:resnet18", "torchvision:shufflenet_v2_x1_0")
MANY = (
    *("timm:" + name for name in (
        "mobilenetv1_100", "mobilenetv2_050", "mobilenetv2_140", "mobilenetv3_large_100", "mobilenetv3_small_100",
        "mobilenetv4_conv_small", "efficientnet_b1", "efficientnet_lite0", "tf_efficientnetv2_b0", "legacy_xception",
        "xception41", "mixnet_s", "mnasnet_100", "fbnetc_100", "convnext_atto", "convnextv2_atto", "resnet50",
        "resnext50_32x4d", "densenet121", "regnetx_002", "regnety_002", "ghostnet_100", "mobileone_s0", "repvgg_a0",
        "hrnet_w18_small", "dla34", "mixer_s32_224", "resmlp_12_224",
    )),
    *("torchvision:" + name for name in (
        "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny", "vgg11", "squeezenet1_1", "googlenet",
        "wide_resnet50_2",
    )),
)  # fmt: skip
PRODUCTS = ("conv", "addmm", "linear", "matmul", "bmm", "einsum", "mm", "baddbmm")


def make(name):
    library, _, rest = name.partition(":")
    if library == "timm":
        model = pytest.importorskip("timm", reason="timm is an extra").create_model(rest)
        return model.eval(), model.pretrained_cfg["input_size"]
    models = pytest.importorskip("torchvision", reason="torchvision is an extra").models
    options = {"init_weights": False} if rest == "googlenet" else {}
    return models.get_model(rest, weights=None, **options).eval(), (3, 224, 224)


def check_against_fvcore(name):
    fvcore = pytest.importorskip("fvcore.nn", reason="fvcore is a requirement for development")
    import warnings

    model, shape = make(name)
    x = torch.zeros(1, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit, which fvcore traces with
        theirs = fvcore.FlopCountAnalysis(model, x).unsupported_ops_warnings(False).by_operator()
    expected = sum(macs for operator, macs in theirs.items() if operator in PRODUCTS)
    assert count(model.to("meta"), x.to("meta")).macs == expected


@pytest.mark.parametrize("name", FEW)
def test_macs_equal_those_of_fvcore(name):
    check_against_fvcore(name)


@pytest.mark.sweep
@pytest.mark.parametrize("name", MANY)
def test_macs_of_many_networks_equal_those_of_fvcore(name):
    check_against_fvcore(name)


# MobileNetV2: Sandler et al. 2018, table 4: 300 M, 3.4 M parameters. Xception: 8.4 G, 22.9 M, as Keras and timm list it
# (Chollet 2017, table 3: 22,855,952 parameters). EfficientNet-B0: Tan and Le 2019, table 2: 0.39 G, 5.3 M.
@pytest.mark.parametrize(
    ("name", "macs", "parameters"),
    [
        ("timm:mobilenetv2_100", 300e6, 3.5e6),
        ("timm:legacy_xception", 8.4e9, 22_855_952),
        ("timm:efficientnet_b0", 0.39e9, 5.3e6),
    ],
)
def test_macs_equal_the_published_figures(name, macs, parameters):
    model, shape = make(name)
    cost = count(model.to("meta"), torch.empty(1, *shape, device="meta"))
    assert cost.macs == pytest.approx(macs, rel=0.015)
    assert cost.parameters == pytest.approx(parameters, rel=0.015)


def test_attention_is_counted_where_fvcore_sees_none():
    """12 blocks of 3 heads, 197 tokens of 64 values a head: 2 * 12 * 3 * 197^2 * 64."""
    model, _ = make("timm:vit_tiny_patch16_224")
    cost = count(model.to("meta"), torch.empty(1, 3, 224, 224, device="meta"))
    kinds = cost.macs_by_kind
    assert kinds.get("attention", 0) + kinds.get("matmul", 0) == 2 * 12 * 3 * 197**2 * 64


def flops_of(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_depthwise_backward_is_counted_right_where_the_counter_of_torch_is_not():
    """torch 2.14 counts the gradient of a depthwise weight as that of a dense one; both figures are kept here."""
    conv = nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False)
    x = torch.randn(2, 64, 10, 10, requires_grad=True)
    forward = 2 * 64 * 100 * 9  # macs
    report = dwsep.analyze(conv, x, latency=False, training=True)
    assert report.macs == 3 * forward
    theirs = flops_of(lambda: conv(x).sum().backward())
    assert theirs > 2 * 2 * 3 * forward
    ours = dwsep.nn.DepthwiseConv2d(64, 3, padding=1, bias=False)
    assert flops_of(lambda: ours(x.detach().requires_grad_()).sum().backward()) == 2 * 3 * forward


@pytest.mark.parametrize("activation", [None, "relu"])
def test_counter_of_torch_knows_the_separable_operator(activation):
    layer = dwsep.nn.DepthwiseSeparableConv2d(8, 24, bias=False, inner_activation=activation)
    x = torch.randn(1, 8, 10, 10, requires_grad=True)
    taps, mixing = 100 * 8 * 9, 100 * 8 * 24
    # forward; backward: the depthwise output again, its two gradients, and the pointwise factor's two
    expected = 2 * ((taps + mixing) + (3 * taps + 2 * mixing))
    assert flops_of(lambda: layer(x).sum().backward()) == expected


def test_deeplab_of_a_large_image_is_analysed_on_meta_in_seconds():
    smp = pytest.importorskip("segmentation_models_pytorch", reason="smp is a requirement for development")
    resource = pytest.importorskip("resource", reason="not on this system")
    with torch.device("meta"):
        model = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None).eval()
    x = torch.empty(1, 3, 4096, 4096, device="meta")
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    report = dwsep.analyze(model, x, latency=False)
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    assert report.macs > 100e9
    assert any(row.reduction is not None for row in report.rows)
