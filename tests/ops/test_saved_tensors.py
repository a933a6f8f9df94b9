"""What stays in memory between forward and backward: the arguments and nothing else, counted in bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dwsep
from dwsep import functional

X, DEPTHWISE, POINTWISE = (2, 8, 9, 7), (16, 1, 3, 3), (16, 16, 1, 1)


def saved_by(call: Callable[[], Tensor]) -> tuple[list[Tensor], Tensor]:
    """The tensors that autograd keeps of ``call``, and its result."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()
    return saved, out


def check_saved(call: Callable[[], Tensor], arguments: list[Tensor]) -> None:
    """Every saved tensor is the memory of an argument, and none is saved twice; a gradient follows from them."""
    saved, out = saved_by(call)
    memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in arguments}
    found = [tensor.untyped_storage().data_ptr() for tensor in saved]
    assert set(found) <= set(memory), [tuple(t.shape) for t in saved]
    assert len(set(found)) == len(found)
    assert sum(tensor.untyped_storage().nbytes() for tensor in saved) <= sum(memory.values())
    out.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in arguments)


def make(*shapes: tuple[int, ...], channels_last: bool = False) -> list[Tensor]:
    tensors = [torch.randn(shape) for shape in shapes]
    if channels_last:
        tensors[0] = tensors[0].to(memory_format=torch.channels_last)
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("activations", [(None, None), ("relu", "relu6"), ("silu", "gelu")])
@pytest.mark.parametrize("residual", [None, "depthwise"])
def test_separable_conv_saves_input_and_parameters_only(channels_last, biases, activations, residual):
    shapes = [X, DEPTHWISE, POINTWISE] + ([(16,), (16,)] if biases else [])
    tensors = make(*shapes, channels_last=channels_last)
    options = {"inner_activation": activations[0], "activation": activations[1], "residual": residual}
    check_saved(lambda: functional.depthwise_separable_conv2d(*tensors, backend="cpu", **options), tensors)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_depthwise_conv_saves_input_and_parameters_only(channels_last, activation):
    tensors = make(X, DEPTHWISE, (16,), channels_last=channels_last)
    check_saved(lambda: functional.depthwise_conv2d(*tensors, activation=activation, backend="cpu"), tensors)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_layer_saves_input_and_parameters_only(axes):
    kind = getattr(dwsep.nn, f"DepthwiseSeparableConv{axes}d")
    layer = kind(8, 12, stride=2, inner_activation="relu", activation="silu")
    (x,) = make((2, 8, *(9, 7, 5)[:axes]))
    check_saved(lambda: layer(x), [x, *layer.parameters()])


def test_two_layers_in_a_row_save_what_lies_between_once():
    first, second = (dwsep.nn.DepthwiseSeparableConv2d(8, 8, inner_activation="relu") for _ in range(2))
    (x,) = make(X)
    saved, out = saved_by(lambda: second(first(x)))
    parameters = {parameter.data_ptr() for layer in (first, second) for parameter in layer.parameters()}
    activations = [tensor for tensor in saved if tensor.data_ptr() not in parameters]
    assert sum(tensor.numel() for tensor in activations) == 2 * x.numel()
    assert out.numel() == x.numel()


def test_nothing_is_saved_where_nothing_is_differentiated():
    tensors = make(X, DEPTHWISE, POINTWISE)
    with torch.no_grad():
        saved, _ = saved_by(lambda: functional.depthwise_separable_conv2d(*tensors))
    assert saved == []
