"""A call that was checked once runs without checks and without the dispatcher, unless something has to see it."""

import warnings

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import dwsep
from dwsep.errors import ArgumentError
from dwsep.functional import _normalised, depthwise_conv1d, depthwise_separable_conv2d


@pytest.fixture(autouse=True)
def no_known_calls(monkeypatch):
    monkeypatch.setattr(_normalised, "_calls", {})


def arguments(grad=True):
    torch.manual_seed(0)
    tensors = torch.randn(2, 6, 5, 7), torch.randn(6, 1, 3, 3), torch.randn(4, 6, 1, 1), torch.randn(6), torch.randn(4)
    return [tensor.requires_grad_(grad) for tensor in tensors]


def run(*tensors, **options):
    return depthwise_separable_conv2d(*tensors, inner_activation="relu", **options)


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Doubled(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out * 2 if "separable_conv" in str(func) else out


class Tagged(torch.Tensor):
    pass


@pytest.mark.parametrize("grad", (True, False))
def test_second_call_is_direct_and_gives_the_same_bits(grad):
    tensors = arguments(grad)
    first = run(*tensors)
    assert len(_normalised._calls) == 1
    second = run(*tensors)
    assert len(_normalised._calls) == 1
    assert torch.equal(first, second)
    assert first.requires_grad == second.requires_grad == grad
    if grad:
        gradients = [torch.autograd.grad(out.square().sum(), tensors) for out in (first, second)]
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
        # To be differentiated again, as through the operator.
        seconds = [
            torch.autograd.grad(
                torch.autograd.grad(out.square().sum(), tensors[1], create_graph=True)[0].sum(), tensors[2]
            )
            for out in (run(*tensors), torch.ops.dwsep.separable_conv(*tensors, *rest()))
        ]
        torch.testing.assert_close(*seconds)


def rest():
    return (1, 1), (1, 1, 1, 1), (1, 1), "relu", "none", "none"


def test_calls_that_differ_in_what_decides_them_are_told_apart():
    tensors = arguments()
    out = run(*tensors)
    with torch.no_grad():
        assert not run(*tensors).requires_grad
    assert run(*tensors).requires_grad
    last = run(tensors[0].contiguous(memory_format=torch.channels_last), *tensors[1:])
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, last)
    double = run(*(tensor.double() for tensor in tensors))
    assert double.dtype == torch.float64
    torch.testing.assert_close(out.double(), double, rtol=1e-5, atol=1e-5)
    assert run(*tensors, activation="relu").min() == 0
    with pytest.raises(ArgumentError, match=r"pointwise_weight must have shape"):
        run(*tensors[:2], tensors[2][:, :5], *tensors[3:])
    with pytest.raises(ArgumentError, match="dtype of x"):
        run(tensors[0], tensors[1].double(), *tensors[2:])
    with pytest.raises(TypeError, match="pointwise_weight must be a tensor"):
        run(*tensors[:2], [1.0], *tensors[3:])
    with pytest.raises(TypeError, match="backend must be a name"):
        run(*tensors, backend=[])
    with pytest.raises(TypeError, match="stride must be an integer"):
        run(*tensors, stride=True)
    assert torch.equal(run(*tensors), out)


@pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason="without the native library there is no operator to see"
)
def test_whatever_has_to_see_the_operator_sees_it():
    tensors = arguments()
    out = run(*tensors)
    run(*tensors)
    with Names() as seen:
        assert torch.equal(run(*tensors), out)
    assert "dwsep.separable_conv.default" in seen.names
    with Doubled():
        assert torch.equal(run(*tensors), out * 2)
    tagged = run(tensors[0].detach().as_subclass(Tagged), *tensors[1:])
    assert type(tagged) is Tagged
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run(*tensors).dtype == torch.bfloat16
    plain = [tensor.detach() for tensor in tensors]
    run(*plain)
    graph = make_fx(run)(*plain).graph
    assert any("separable_conv" in str(node.target) for node in graph.nodes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in use
        traced = torch.jit.trace(lambda x: run(x, *plain[1:]), plain[0], check_trace=False)
    assert "dwsep::separable_conv" in str(traced.graph)
    mapped = torch.func.vmap(lambda x: run(x[None], *plain[1:])[0])(plain[0])
    torch.testing.assert_close(mapped, out)
    gradient = torch.func.grad(lambda x: run(x, *plain[1:]).square().sum())(plain[0])
    torch.testing.assert_close(gradient, torch.autograd.grad(out.square().sum(), tensors[0])[0], rtol=1e-4, atol=1e-4)


def test_memory_of_calls_is_bounded(monkeypatch):
    monkeypatch.setattr(_normalised, "_MOST_CALLS", 5)
    for length in range(3, 40):
        depthwise_conv1d(torch.ones(1, 2, length), torch.ones(2, 1, 3))
        assert 1 <= len(_normalised._calls) <= 5


def test_unbatched_and_channels_last_references_keep_their_form():
    x = torch.randn(1, 3, 8, dtype=torch.float64)
    last = x.transpose(1, 2).contiguous().transpose(1, 2)
    weight = torch.randn(3, 1, 3, dtype=torch.float64)
    for _ in range(2):
        assert depthwise_conv1d(x[0], weight, padding=1).shape == (3, 8)
        assert depthwise_conv1d(last, weight, padding=1).stride()[1] == 1
