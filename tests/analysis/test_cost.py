import pytest
import torch
from torch import nn

import dwsep
from dwsep.analysis import count


def only(cost):
    (layer,) = cost.layers
    return layer


@pytest.mark.parametrize(
    ("layer", "shape", "kind", "macs", "parameters"),
    [
        (nn.Conv1d(4, 6, 5, padding=2), (2, 4, 10), "dense", 2 * 10 * 6 * 4 * 5, 6 * 4 * 5 + 6),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), (1, 3, 9, 7), "dense", 5 * 4 * 8 * 3 * 9, 8 * 3 * 9),
        (nn.Conv3d(2, 4, (1, 3, 3)), (1, 2, 4, 5, 6), "dense", 4 * 3 * 4 * 4 * 2 * 9, 4 * 2 * 9 + 4),
        (nn.Conv2d(8, 12, 3, groups=4, dilation=2), (1, 8, 9, 9), "grouped", 5 * 5 * 12 * 2 * 9, 12 * 2 * 9 + 12),
        (nn.Conv2d(8, 16, 3, groups=8, padding=1), (3, 8, 5, 5), "depthwise", 3 * 25 * 16 * 9, 16 * 9 + 16),
        (nn.Conv2d(8, 16, 1), (1, 8, 5, 5), "pointwise", 25 * 8 * 16, 8 * 16 + 16),
        (nn.Conv2d(8, 16, 1, groups=2), (1, 8, 5, 5), "grouped", 25 * 4 * 16, 4 * 16 + 16),
        (nn.Conv2d(1, 4, 3), (1, 1, 5, 5), "dense", 9 * 4 * 9, 4 * 9 + 4),
        (nn.Conv2d(3, 4, 3), (3, 5, 5), "dense", 9 * 4 * 3 * 9, 4 * 3 * 9 + 4),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), "transposed", 25 * 4 * 6 * 4, 4 * 6 * 4 + 6),
        (nn.Linear(10, 7), (2, 3, 10), "linear", 6 * 70, 77),
        (dwsep.nn.DepthwiseConv1d(4, 5, padding="causal"), (1, 4, 10), "depthwise", 10 * 4 * 5, 4 * 5 + 4),
        (dwsep.nn.DepthwiseConv2d(4, 3, depth_multiplier=2), (1, 4, 5, 5), "depthwise", 9 * 8 * 9, 8 * 9 + 8),
        (dwsep.nn.DepthwiseConv2d(1, 3), (1, 1, 5, 5), "depthwise", 9 * 9, 9 + 1),
    ],
    ids=lambda value: repr(value) if isinstance(value, nn.Module) else None,
)
def test_count_equals_the_formula(layer, shape, kind, macs, parameters):
    cost = only(count(layer, torch.empty(shape)))
    assert (cost.kind, cost.macs, cost.parameters) == (kind, macs, parameters)
    assert cost.output_shape == tuple(layer(torch.empty(shape)).shape)


OPTIONS = {"norm": "batch", "inner_norm": "batch", "activation": "relu", "bias": False}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", [{}, OPTIONS, {"inner_activation": torch.sin}], ids=["plain", "norm", "custom"])
def test_count_of_a_separable_layer_is_that_of_its_factors_however_it_runs(options, training):
    layer = dwsep.nn.DepthwiseSeparableConv2d(6, 10, 3, (2, 1), 1, depth_multiplier=2, **options).train(training)
    cost = count(nn.Sequential(layer), torch.randn(2, 6, 8, 5))
    depthwise, pointwise = cost.layers
    assert (depthwise.name, pointwise.name) == ("0.depthwise", "0.pointwise")
    assert (depthwise.kind, pointwise.kind) == ("depthwise", "pointwise")
    assert depthwise.macs == 2 * 4 * 5 * 12 * 9
    assert pointwise.macs == 2 * 4 * 5 * 12 * 10
    assert depthwise.output_shape == (2, 12, 4, 5)
    assert pointwise.output_shape == (2, 10, 4, 5)
    assert cost.macs == cost.macs_spatial == depthwise.macs + pointwise.macs
    assert cost.parameters == sum(p.numel() for p in layer.parameters())


def test_count_of_pointwise_first_uses_the_input_size_for_the_pointwise_factor():
    layer = dwsep.nn.DepthwiseSeparableConv2d(6, 10, 3, 2, order="pointwise_first")
    pointwise, depthwise = count(layer, torch.randn(1, 6, 8, 8)).layers
    assert (pointwise.name, pointwise.macs, pointwise.output_shape) == ("pointwise", 64 * 6 * 10, (1, 10, 8, 8))
    assert (depthwise.name, depthwise.macs, depthwise.output_shape) == ("depthwise", 16 * 10 * 9, (1, 10, 4, 4))


@pytest.mark.parametrize("layer", [dwsep.nn.DepthwiseSeparableConv1d, dwsep.nn.DepthwiseSeparableConv3d])
def test_count_of_separable_layers_in_other_dimensions(layer):
    module = layer(4, 6)
    ndim = module.depthwise.weight.dim() - 2
    cost = count(module, torch.randn(4, *(5,) * ndim))  # unbatched
    assert cost.macs == 5**ndim * (4 * 3**ndim + 4 * 6)


def test_count_on_meta_equals_count_on_data():
    def build(device):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, device=device),
            nn.BatchNorm2d(8, device=device),
            dwsep.nn.DepthwiseSeparableConv2d(8, 4, stride=2, inner_activation="relu", device=device),
        )

    on_data = count(build("cpu"), torch.randn(1, 3, 16, 16))
    assert count(build("meta"), torch.empty(1, 3, 16, 16, device="meta")) == on_data


# Howard et al. 2017, table 8: 569 million mult-adds and 4.2 million parameters; the exact figures follow from table 1.
def test_count_of_mobilenet_v1_is_the_published_one():
    cost = count(dwsep.networks.create("mobilenet_v1", num_classes=1000), torch.empty(1, 3, 224, 224))
    assert cost.macs == 568_740_352
    assert cost.parameters == 4_231_976
    assert len(cost.layers) == 1 + 2 * 13 + 1
    # table 2 of the paper gives the shares of mult-adds: 94.86 % 1x1, 3.06 % depthwise, 1.19 % 3x3, 0.18 % linear
    shares = {kind: 100 * macs / cost.macs for kind, macs in cost.macs_by_kind.items()}
    expected = {"pointwise": 94.86, "depthwise": 3.06, "linear": 0.18}
    assert {kind: shares[kind] for kind in expected} == pytest.approx(expected, abs=0.1)


def test_macs_spatial_covers_what_the_twins_do_not_share():
    options = {"num_classes": 10, "in_channels": 1, "width_multiplier": 0.5, "stem": "small"}
    x = torch.empty(1, 1, 28, 28)
    separable = count(dwsep.networks.create("mobilenet_v1", **options), x)
    dense = count(dwsep.networks.create("mobilenet_v1_dense", **options), x)
    assert [layer.name for layer in separable.layers if not layer.spatial] == ["stem.conv", "classifier"]
    assert [layer.name for layer in dense.layers if not layer.spatial] == ["stem.conv", "classifier"]
    assert dense.macs - dense.macs_spatial == separable.macs - separable.macs_spatial
    assert 7 < dense.macs_spatial / separable.macs_spatial < 9


def test_macs_spatial_finds_the_pairs_of_a_network_in_plain_layers():
    def squeeze():
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), nn.Upsample((6, 6)))

    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),  # stem
        nn.Conv2d(4, 8, 1),  # expansion
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        squeeze(),
        nn.Conv2d(8, 5, 1),  # completes the depthwise layer
        nn.Conv2d(5, 5, 1),
        nn.Conv2d(5, 5, 3, padding=1),
    )
    cost = count(network, torch.randn(1, 3, 6, 6))
    assert [layer.name for layer in cost.layers if layer.spatial] == ["2", "4", "6"]
    assert cost.macs_spatial == 36 * (8 * 9 + 8 * 5 + 5 * 5 * 9)


def test_count_lists_every_call_of_a_shared_layer_and_its_parameters_once():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    cost = count(nn.Sequential(shared, nn.ReLU(), shared), torch.randn(1, 4, 6, 6))
    assert len(cost.layers) == 2
    assert cost.macs == 2 * 36 * 16 * 9
    assert cost.parameters == 4 * 4 * 9 + 4


def test_count_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count(model, torch.randn(2, 3, 8, 8))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(not module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_count_removes_its_hooks_where_the_model_fails():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(RuntimeError):
        count(model, torch.randn(1, 5, 8, 8))
    assert all(not module._forward_hooks for module in model.modules())
    assert model.training


def test_count_passes_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, a, b):
            return self.linear(input=a + b)

    assert count(Two(), (torch.ones(1, 4), torch.ones(1, 4))).macs == 8


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (len, torch.ones(1), "model must be a torch.nn.Module, got builtin_function_or_method"),
        (nn.Identity(), (1, 3, 8, 8).__iter__(), "example_inputs must be a tensor, or a tuple or list"),
        (nn.Identity(), None, "example_inputs must be a tensor, or a tuple or list .* got NoneType"),
    ],
)
def test_count_rejects_bad_arguments(model, example, message):
    with pytest.raises(TypeError, match=message):
        count(model, example)
