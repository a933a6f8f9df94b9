"""Streams, chunk by chunk, and ragged batches: the result of each sequence is that of running it whole and alone."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import dwsep
from dwsep.nn import _folding

Depthwise, Separable = dwsep.nn.DepthwiseConv1d, dwsep.nn.DepthwiseSeparableConv1d
NATIVE = pytest.mark.skipif(not dwsep.ops.native_status().loaded, reason="bits are the native kernels' promise")
ACTIVATIONS = (None, "silu", "relu", "gelu", nn.PReLU)


def chunks(rng, length):
    """Sizes of random chunks of a sequence: all single elements, few long ones, or anything between."""
    most = rng.choice((1, 3, 17, length))
    while length:
        size = rng.randint(1, min(most, length))
        length -= size
        yield size


def stream(layer, x, sizes, single=False):
    """The outputs of a sequence's chunks in a row, and the state after the last."""
    state, outputs, start = None, [], 0
    for size in sizes:
        single_step = single and size == 1 and layer.stride == (1,)
        part = x[..., start] if single_step else x[..., start : start + size]
        out, state = layer.step(part, state)
        outputs.append(out.unsqueeze(-1) if out.dim() == 2 else out)
        start += size
    return torch.cat(outputs, -1), state


def drawn(seed):
    """A random causal layer, a sequence, and the chunks to run it in."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    channels, kernel, dilation = rng.choice((1, 3, 8, 17, 40)), rng.randint(1, 9), rng.choice((1, 1, 2, 3, 8, 31))
    length, batch, multiplier = rng.randint(1, 70), rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2))
    options = {"padding": "causal", "dilation": dilation, "bias": rng.random() < 0.7, "depth_multiplier": multiplier,
               "stride": rng.choice((1, 1, 1, 2, 3, 5))}  # fmt: skip
    dtype = torch.float32
    if rng.random() < 0.5:
        dtype = rng.choice((torch.float32, torch.bfloat16))
        layer = Depthwise(channels, kernel, activation=rng.choice(ACTIVATIONS[:4]), dtype=dtype, **options)
    else:
        out = rng.choice((1, 5, 16, 33))
        residual, order = rng.choice((None, "input", "depthwise")), rng.choice(("depthwise_first", "pointwise_first"))
        if residual == "input" or (residual == "depthwise" and order == "pointwise_first"):
            options["stride"] = 1
        if order == "pointwise_first":
            multiplier = options["depth_multiplier"] = 1
        out = {None: out, "input": channels, "depthwise": channels * multiplier}[residual]
        layer = Separable(
            channels, out, kernel, activation=rng.choice(ACTIVATIONS), inner_activation=rng.choice(ACTIVATIONS),
            norm=rng.choice((None, "batch")), inner_norm=rng.choice((None, "batch")), residual=residual, order=order,
            **options,
        )  # fmt: skip
        for norm in (layer.norm, layer.inner_norm):
            if norm is not None:
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
        layer.eval()
    x = torch.randn(batch, channels, length, dtype=dtype)
    if rng.random() < 0.3:
        x = x.mT.contiguous().mT
    return layer, x, list(chunks(rng, length)), rng.random() < 0.5


def check_stream(seed):
    layer, x, sizes, single = drawn(seed)
    with torch.set_grad_enabled(seed % 3 == 0):
        whole = layer(x)
        streamed, state = stream(layer, x, sizes, single)
        fused = isinstance(layer, Separable) and layer.order == "depthwise_first" and _folding.fused_arguments(layer)
        one_operator = isinstance(layer, Depthwise) or bool(fused)
    if one_operator:
        assert torch.equal(streamed, whole), (seed, layer, sizes)
    else:
        torch.testing.assert_close(streamed, whole, rtol=1e-5, atol=1e-5)
    if getattr(layer, "order", "") != "pointwise_first":
        past = torch.cat([layer.initial_state(x.shape[0]), x], -1)
        assert torch.equal(state, past[..., whole.shape[-1] * layer.stride[0] :])
        assert layer.history <= state.shape[-1] < layer.history + layer.stride[0]


@NATIVE
@pytest.mark.parametrize("start", range(0, 400, 40))
def test_step_equals_the_whole_bit_for_bit(start):
    for seed in range(start, start + 40):
        check_stream(seed)


@NATIVE
@pytest.mark.sweep
@pytest.mark.parametrize("start", range(0, 10_000, 500))
def test_step_equals_the_whole_bit_for_bit_sweep(start):
    for seed in range(start, start + 500):
        check_stream(seed)


@NATIVE
@pytest.mark.parametrize("make", [lambda: Depthwise(8, 4, padding="causal", activation="silu"),
                                  lambda: Separable(8, 12, 4, padding="causal", inner_activation="relu")])  # fmt: skip
def test_step_equals_the_whole_with_gradients(make):
    layer = make()
    x = torch.randn(2, 8, 21)
    whole, (streamed, _) = layer(x), stream(layer, x, [4, 1, 1, 15])
    assert torch.equal(streamed, whole)
    grad = torch.randn_like(whole)
    expected = torch.autograd.grad(whole, list(layer.parameters()), grad)
    for a, e in zip(torch.autograd.grad(streamed, list(layer.parameters()), grad), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


@NATIVE
@pytest.mark.parametrize("options", [
    {"norm": "batch", "inner_norm": "batch", "activation": "relu"}, {"inner_activation": nn.PReLU},
    {"order": "pointwise_first", "norm": "batch", "inner_activation": "relu6"},
])  # fmt: skip
def test_step_equals_the_whole_bit_for_bit_also_in_parts(options):
    """With gradients of norms, and with other activations: torch's do not depend on the position here."""
    rng = random.Random(0)
    for dilation in range(1, 30):
        layer = Separable(17, 33, 3, padding="causal", dilation=dilation, **options).eval()
        x = torch.randn(2, 17, rng.randint(1, 100))
        assert torch.equal(stream(layer, x, list(chunks(rng, x.shape[-1])))[0], layer(x))


@NATIVE
@pytest.mark.parametrize("parametrise", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_step_equals_the_whole_with_parametrised_weights(parametrise):
    layer = Separable(6, 9, 3, padding="causal", norm="batch", inner_activation="relu")
    parametrise(layer.depthwise)
    parametrise(layer.pointwise)
    x = torch.randn(2, 6, 30)
    assert torch.equal(stream(layer.eval(), x, [1, 2, 20, 7])[0], layer(x))


@pytest.mark.parametrize("make", [
    lambda: Depthwise(6, 3, padding="causal", dilation=3, dtype=torch.float64),
    lambda: Separable(6, 6, 3, padding="causal", dilation=3, dtype=torch.float64, residual="input"),
    lambda: Separable(6, 6, 3, padding="causal", dtype=torch.float64, order="pointwise_first", norm="batch"),
])  # fmt: skip
def test_step_equals_the_whole_to_rounding_in_other_dtypes(make):
    layer = make().eval()
    x = torch.randn(2, 6, 30, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(stream(layer, x, [1, 2, 20, 7])[0], layer(x), rtol=1e-12, atol=1e-12)


def test_step_refuses():
    x = torch.ones(1, 4, 5)
    for layer in (Depthwise(4, 3, padding="same"), Depthwise(4, 3, padding="causal", padding_mode="replicate"),
                  Separable(4, 4, 3)):  # fmt: skip
        with pytest.raises(dwsep.ArgumentError, match="step needs a causal layer"):
            layer.step(x)
    with pytest.raises(dwsep.ArgumentError, match="with stride=2: a single time step may have no output"):
        Depthwise(4, 3, 2, padding="causal").step(x[..., 0])
    with pytest.raises(dwsep.ArgumentError, match=r"state must have shape \(1, 4, 2 to 3\)"):
        Depthwise(4, 3, 2, padding="causal").step(x, x[..., :4])
    layer = Depthwise(4, 3, padding="causal")
    for bad in (x[:, :3], x[..., :0], x[0, 0]):
        with pytest.raises(dwsep.ArgumentError, match="x must be"):
            layer.step(bad)
    for bad in (torch.zeros(1, 4, 3), torch.zeros(2, 4, 2), torch.zeros(1, 4, 2, dtype=torch.float64)):
        with pytest.raises(dwsep.ArgumentError, match="state must have shape"):
            layer.step(x, bad)
    with pytest.raises(TypeError, match="state must be None or a tensor"):
        layer.step(x, [0])
    with pytest.raises(dwsep.ArgumentError, match="step needs norm in evaluation mode"):
        Separable(4, 4, 3, padding="causal", norm="batch").step(x)


def test_step_with_a_stride_longer_than_the_window():
    """Elements which no window sees pass through the state all the same."""
    layer = Depthwise(3, 2, 5, padding="causal")
    x = torch.randn(2, 3, 23)
    streamed, state = stream(layer, x, [1, 2, 1, 4, 1, 1, 13])
    torch.testing.assert_close(streamed, layer(x))
    assert state.shape == (2, 3, 1 + 4 - 2)  # two elements before the next output


def test_the_state_does_not_keep_a_long_chunk_alive():
    layer = Depthwise(4, 3, padding="causal")
    _, state = layer.step(torch.ones(1, 4, 1000))
    assert state.untyped_storage().nbytes() == 4 * 2 * 4


RAGGED = [
    lambda: Depthwise(6, 4, padding="causal", activation="silu"),
    lambda: Depthwise(6, 5, padding="same", dilation=2, depth_multiplier=2),
    lambda: Separable(6, 9, 3, dilation=3, norm="batch", inner_activation="relu"),
    lambda: Separable(6, 6, 4, padding="causal", residual="input"),
    lambda: Separable(6, 8, 3, order="pointwise_first", activation=nn.ELU),
]


@pytest.mark.parametrize("make", RAGGED)
@pytest.mark.parametrize("poison", [float("nan"), 1e6])
def test_ragged_lengths_equal_each_sequence_alone(make, poison):
    layer = make().eval()
    lengths = [13, 1, 20, 7]
    x = torch.randn(4, 6, 20)
    for row, length in enumerate(lengths):
        x[row, :, length:] = poison
    with torch.no_grad():
        out = layer.forward_ragged(x, lengths=lengths)
        assert torch.equal(out, layer.forward_ragged(x, lengths=torch.tensor(lengths, dtype=torch.int32)))
        for row, length in enumerate(lengths):
            alone = layer(x[row : row + 1, :, :length])[0]
            torch.testing.assert_close(out[row, :, : alone.shape[-1]], alone, rtol=1e-6, atol=1e-6)
            assert not out[row, :, alone.shape[-1] :].any()


@pytest.mark.parametrize(
    "stride, padding", list(itertools.product((1, 2, 3), ("same", "valid", "causal", [(1, 3)], [(4, -1)])))
)
def test_ragged_lengths_with_strides_and_paddings(stride, padding):
    layer = Depthwise(6, 3, stride, padding=padding)
    lengths = [13, 5, 20, 6]
    x = torch.randn(4, 6, 20)
    out = layer.forward_ragged(x, lengths=lengths)
    for row, length in enumerate(lengths):
        alone = layer(x[row, :, :length])
        torch.testing.assert_close(out[row, :, : alone.shape[-1]], alone, rtol=1e-6, atol=1e-6)
        assert not out[row, :, alone.shape[-1] :].any()


@pytest.mark.parametrize("make", RAGGED)
def test_ragged_packed_equals_each_sequence_alone(make):
    layer = make().eval()
    starts = [0, 13, 14, 14, 34, 41]  # one sequence is empty
    x = torch.randn(1, 6, 41)
    with torch.no_grad():
        out = layer.forward_ragged(x, cu_seqlens=torch.tensor(starts, dtype=torch.int32))
        for start, end in itertools.pairwise(starts):
            if end > start:
                alone = layer(x[..., start:end])
                torch.testing.assert_close(out[..., start:end], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", RAGGED)
def test_ragged_gradients_stay_within_a_sequence(make):
    layer = make().eval()
    x = torch.randn(1, 6, 20, requires_grad=True)
    layer.forward_ragged(x, cu_seqlens=[0, 8, 20])[..., 8:].square().sum().backward()
    assert not x.grad[..., :8].any()
    assert x.grad[..., 8:].any()
    y = torch.randn(2, 6, 20, requires_grad=True)
    layer.forward_ragged(y, lengths=[8, 20]).square().sum().backward()
    assert not y.grad[0, :, 8:].any()
    assert y.grad[0, :, :8].any()


def test_ragged_refuses():
    layer, x = Depthwise(4, 3, padding="same"), torch.ones(2, 4, 8)
    cases = [
        ({}, "either lengths or cu_seqlens"),
        ({"lengths": [8, 8], "cu_seqlens": [0, 8]}, "either lengths or cu_seqlens"),
        ({"lengths": [8]}, "one entry for each of 2 sequences, got 1"),
        ({"lengths": [0, 8]}, "lengths must be within 1 and 8"),
        ({"lengths": [8, 9]}, "lengths must be within 1 and 8"),
        ({"lengths": [8.0, 9.0]}, "lengths must be one axis of integers"),
        ({"cu_seqlens": [0, 8]}, "x must have shape"),
    ]
    for arguments, message in cases:
        with pytest.raises(dwsep.ArgumentError, match=message):
            layer.forward_ragged(x, **arguments)
    for bad in ([0, 7], [1, 8], [0, 5, 3, 8], [8]):
        with pytest.raises(dwsep.ArgumentError, match="cu_seqlens must rise from 0 to 8"):
            layer.forward_ragged(x[:1], cu_seqlens=bad)
    with pytest.raises(dwsep.ArgumentError, match="output is as long as its input"):
        Depthwise(4, 3).forward_ragged(x[:1], cu_seqlens=[0, 8])
    for wrong in (Depthwise(4, 3, padding="same_tf"), Depthwise(4, 3, padding="same", padding_mode="circular")):
        with pytest.raises(dwsep.ArgumentError, match="padding which does not depend on the length"):
            wrong.forward_ragged(x, lengths=[8, 8])
    with pytest.raises(dwsep.ArgumentError, match="norm in evaluation mode"):
        Separable(4, 4, norm="batch").forward_ragged(x, lengths=[8, 8])


def test_short_convolution_takes_the_weights_of_a_state_space_model():
    """As Mamba has it: torch's convolution padded at both ends, the surplus cut off, then SiLU."""
    conv = nn.Conv1d(12, 12, 4, groups=12, padding=3)
    layer = Depthwise(12, 4, padding="causal", activation="silu")
    layer.load_state_dict(conv.state_dict())
    x = torch.randn(2, 12, 30)
    torch.testing.assert_close(layer(x), nn.functional.silu(conv(x)[..., :30]), rtol=1e-5, atol=1e-6)
