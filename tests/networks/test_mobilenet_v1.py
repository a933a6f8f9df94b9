"""MobileNetV1 against its published figures, its outline, and its dense twin."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dwsep.analysis import count
from dwsep.networks._plain import mobilenet_v1_plain
from dwsep.networks.mobilenet_v1 import mobilenet_v1, mobilenet_v1_dense, plan_blocks, scale_channels

SMALL = {"in_channels": 1, "width_multiplier": 0.25, "stem": "small"}


def on_meta(factory, *arguments, **options):
    with torch.device("meta"):
        return factory(*arguments, **options)


@pytest.mark.parametrize(
    ("width_multiplier", "image_size", "parameters", "macs"),
    # Howard et al. 2017, Tables 4, 6 and 7: in millions, as printed there.
    [(1.0, 224, 4.2, 569), (0.75, 224, 2.6, 325), (0.5, 224, 1.3, 149), (0.25, 224, 0.5, 41), (1.0, 192, 4.2, 418)],
)
def test_mobilenet_v1_costs_what_the_paper_says(width_multiplier, image_size, parameters, macs):
    model = on_meta(mobilenet_v1, 1000, width_multiplier=width_multiplier)
    cost = count(model, torch.empty(1, 3, image_size, image_size, device="meta"))
    assert cost.parameters / 1e6 == pytest.approx(parameters, abs=0.05)
    assert cost.macs / 1e6 == pytest.approx(macs, abs=0.6)


def test_mobilenet_v1_dense_costs_what_its_outline_says():
    model = on_meta(mobilenet_v1_dense, 1000)
    cost = count(model, torch.empty(1, 3, 224, 224, device="meta"))
    size, macs = 112, 9 * 3 * 32 * 112**2 + 1024 * 1000
    for in_channels, out_channels, stride in plan_blocks():
        size //= stride
        macs += 9 * in_channels * out_channels * size**2
    assert size == 7
    assert cost.macs == macs
    assert cost.parameters == sum(p.numel() for p in model.parameters())


def test_mobilenet_v1_saves_what_the_arithmetic_promises():
    image = torch.empty(1, 1, 28, 28, device="meta")
    separable, dense = (count(on_meta(f, 10, **SMALL), image) for f in (mobilenet_v1, mobilenet_v1_dense))
    assert dense.macs_spatial / separable.macs_spatial > 8


@pytest.mark.parametrize(
    ("stem", "image_size", "sizes"),
    [
        ("imagenet", 224, [112, 56, 56, 28, 28, 14, 14, 14, 14, 14, 14, 7, 7]),
        ("small", 28, [28, 14, 14, 7, 7, 4, 4, 4, 4, 4, 4, 4, 4]),
        ("small", 32, [32, 16, 16, 8, 8, 4, 4, 4, 4, 4, 4, 4, 4]),
    ],
)
@pytest.mark.parametrize("factory", [mobilenet_v1, mobilenet_v1_dense])
def test_mobilenet_v1_keeps_the_resolution_its_stem_says(factory, stem, image_size, sizes):
    model = on_meta(factory, 10, width_multiplier=0.25, stem=stem)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape[2:])))
    model(torch.empty(2, 3, image_size, image_size, device="meta"))
    assert seen == [(size, size) for size in sizes]


@pytest.mark.parametrize("factory", [mobilenet_v1, mobilenet_v1_dense])
def test_mobilenet_v1_starts_the_same_from_the_same_seed(factory):
    models = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        models.append(factory(10, **SMALL).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["stem.conv.weight"], models[2]["stem.conv.weight"])


@pytest.mark.parametrize("factory", [mobilenet_v1, mobilenet_v1_dense])
def test_mobilenet_v1_starts_with_signals_and_gradients_of_moderate_size(factory):
    model = factory(10, **SMALL)
    x = torch.randn(16, 1, 28, 28)
    loss = nn.functional.cross_entropy(model(x), torch.arange(16) % 10)
    # A network that knows nothing loses ln 10.
    assert loss.item() == pytest.approx(2.303, abs=0.3)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_mobilenet_v1_dense_draws_weights_over_the_fan_out():
    block = mobilenet_v1_dense(10, width_multiplier=0.5).blocks[6]
    weight = block.conv.weight
    assert weight.std().item() == pytest.approx((2 / (9 * weight.shape[0])) ** 0.5, rel=0.02)
    assert block.norm.weight.eq(1).all()


def test_mobilenet_v1_drops_features_in_training_alone():
    model = mobilenet_v1(10, dropout=0.5, **SMALL)
    x = torch.randn(4, 1, 28, 28)
    model.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    seen: list[torch.Tensor] = []
    model(x)
    model.eval()
    with torch.no_grad():
        model(x)
        model(x)
    assert 0.3 < (seen[0] == 0).float().mean() < 0.9
    assert torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("factory", [mobilenet_v1, mobilenet_v1_dense, mobilenet_v1_plain])
def test_mobilenet_v1_adds_a_block_input_where_the_shape_stays(factory):
    model = factory(10, residual=True, **SMALL).eval()
    without = factory(10, **SMALL).eval()
    without.load_state_dict(model.state_dict(), strict=True)
    added = []
    with torch.no_grad():
        x = model.stem(torch.randn(2, 1, 28, 28))
        for index, (block, bare) in enumerate(zip(model.blocks, without.blocks, strict=True), 1):
            out, expected = block(x), bare(x)
            if x.shape == out.shape:
                added.append(index)
                expected = expected + x
            torch.testing.assert_close(out, expected)
            x = out
    # The other blocks have a stride or change the channels.
    assert added == [3, 5, 7, 8, 9, 10, 11, 13]


@pytest.mark.parametrize("factory", [mobilenet_v1, mobilenet_v1_dense])
def test_mobilenet_v1_residual_costs_nothing(factory):
    image = torch.empty(1, 1, 28, 28, device="meta")
    costs = [count(on_meta(factory, 10, residual=residual, **SMALL), image) for residual in (False, True)]
    assert costs[0].parameters == costs[1].parameters
    assert costs[0].macs == costs[1].macs


def test_scale_channels_rounds_to_multiples_of_eight():
    for width_multiplier in (0.01, 0.125, 0.3, 0.75, 1.0, 1.4):
        for channels in (32, 64, 128, 1024):
            scaled = scale_channels(channels, width_multiplier)
            assert scaled % 8 == 0
            assert scaled >= 8
            assert abs(scaled - channels * width_multiplier) <= 4 or scaled == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be a positive integer, got 0"),
        ({"num_classes": 2.0}, "num_classes must be a positive integer, got 2.0"),
        ({"num_classes": True}, "num_classes must be a positive integer, got True"),
        ({"in_channels": -1}, "in_channels must be a positive integer, got -1"),
        ({"width_multiplier": 0}, "width_multiplier must be a positive number, got 0"),
        ({"width_multiplier": float("nan")}, "width_multiplier must be a positive number, got nan"),
        ({"width_multiplier": float("inf")}, "width_multiplier must be a positive number, got inf"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"residual": "input"}, "residual must be True or False, got 'input'"),
        ({"stem": "tiny"}, "stem: unknown name 'tiny'; valid names are 'imagenet', 'small'"),
    ],
)
def test_mobilenet_v1_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        mobilenet_v1(**{"num_classes": 10, **options})
