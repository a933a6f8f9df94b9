"""The separable convolution in one Triton kernel against the reference: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from dwsep.kernels import reference
from dwsep.kernels.activations import NAMES
from dwsep.kernels.triton.shapes import shape_of
from tests.problems import exact, last, normal, small_integers

pytest.importorskip("triton", reason="Triton is for Linux")
from dwsep.kernels.triton import separable, separable_launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SAME = [1, 1], [1, 1, 1, 1], [1, 1]
# Size, channels, multiplier, outputs, kernel, stride, padding, dilation.
PROBLEMS = [
    ((7, 9), 8, 1, 5, (3, 3), (1, 1), [1, 1, 1, 1], (1, 1)),
    ((9, 10), 40, 1, 24, (3, 3), (2, 2), [0, 1, 1, 0], (1, 1)),  # a rest of inner channels
    ((8, 7), 6, 3, 17, (5, 4), (1, 1), [2, 2, 1, 2], (1, 1)),
    ((9, 9), 5, 1, 33, (3, 3), (1, 1), [6, 6, 6, 6], (6, 6)),
    ((7, 11), 4, 2, 70, (2, 3), (3, 2), [1, 0, 2, 3], (2, 3)),
    ((50,), 16, 1, 3, (7,), (1,), [6, 0], (1,)),
]


PRECISION_OF = separable_launch.precision_of


@pytest.fixture(autouse=True)
def _products_of_bfloat16(monkeypatch):
    """The interpreter multiplies bfloat16 as the integers which it keeps them in, were it not for this."""
    if DEVICE == "cuda":
        return
    from triton import language
    from triton.runtime.interpreter import InterpreterBuilder

    multiply = InterpreterBuilder.create_dot

    def create_dot(self, *operands):
        *factors, total, precision, most = operands
        wide = [self.cast_impl(f, language.float32) if f.dtype.scalar == language.bfloat16 else f for f in factors]
        return multiply(self, *wide, total, precision, most)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture(autouse=True)
def _float32_products(monkeypatch):
    """Float32 is multiplied as such, whatever PyTorch allows."""
    monkeypatch.setattr(separable_launch, "precision_of", lambda dtype: "ieee")


def arguments_of(draw, size, channels, multiplier, outputs, kernel, *_, bias=True):
    """x, weights and biases where the kernels run."""
    inner = channels * multiplier
    x = last(draw((2, channels, *size)))
    weights = draw((inner, 1, *kernel)), draw((outputs, inner, *(1,) * len(kernel)))
    biases = (draw((inner,)), draw((outputs,))) if bias else (None, None)
    return [None if tensor is None else tensor.to(DEVICE) for tensor in (x, *weights, *biases)]


def truth(tensors, *rest):
    """The reference in float64."""
    return reference.separable_conv(*(None if t is None else t.cpu().double() for t in tensors), *rest)


@pytest.mark.parametrize("position", range(len(PROBLEMS)))
def test_problems_are_exact(position):
    dtype = DTYPES[position % 3]
    size, *sizes, stride, padding, dilation = PROBLEMS[position]
    draw = small_integers(torch.Generator().manual_seed(0), dtype, 2)
    tensors = arguments_of(draw, size, *sizes, bias=position % 2 == 0)
    rest = list(stride), padding, list(dilation), "relu", ("none", "relu")[position % 2], "none"
    out = separable.fused(*tensors, *rest)
    assert out.stride(1) == 1
    assert exact(out.cpu(), truth(tensors, *rest))


@pytest.mark.parametrize("residual", ["input", "depthwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_residuals_are_exact(residual, dtype):
    draw = small_integers(torch.Generator().manual_seed(0), dtype, 2)
    tensors = arguments_of(draw, (6, 5), 36, 1, 36, (3, 3))
    rest = *SAME, "none", "relu", residual
    assert exact(separable.fused(*tensors, *rest).cpu(), truth(tensors, *rest))


@pytest.mark.parametrize("activation", NAMES)
def test_activations_of_both_factors(activation):
    tensors = arguments_of(normal(torch.Generator().manual_seed(0)), (4, 6), 8, 1, 16, (3, 3))
    rest = *SAME, activation, NAMES[NAMES.index(activation) - 1], "none"
    torch.testing.assert_close(
        separable.fused(*tensors, *rest).cpu().double(), truth(tensors, *rest), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_between_and_behind_the_factors(dtype):
    draw = normal(torch.Generator().manual_seed(0))
    tensors = arguments_of(lambda shape: draw(shape).to(dtype), (6, 6), 24, 1, 16, (3, 3))
    rest = *SAME, "relu", "none", "none"
    wanted = truth(tensors, *rest)
    eps = torch.finfo(dtype).eps
    eps = 2 * eps if DEVICE == "cpu" and dtype == torch.bfloat16 else eps  # the interpreter cuts bfloat16 off
    magnitude = truth([tensor.abs() for tensor in tensors], *rest)
    bound = eps / 2 * wanted.abs() + 1.01 * eps / 2 * magnitude
    assert ((separable.fused(*tensors, *rest).cpu().double() - wanted).abs() <= bound).all()


@pytest.mark.parametrize("last_", [True, False])
@pytest.mark.parametrize("outputs", [8, 300])
def test_forward_and_backward_whatever_runs(outputs, last_, monkeypatch):
    # float32 in one kernel is TF32's alone, so both factors run one by one.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    tensors = arguments_of(small_integers(torch.Generator().manual_seed(0)), (4, 5), 6, 1, outputs, (3, 3))
    tensors[0] = tensors[0] if last_ else tensors[0].contiguous()
    rest = *SAME, "relu", "relu", "none"
    out = separable.forward(*tensors, *rest, last=last_)
    assert exact(out.cpu(), truth(tensors, *rest))
    grad = torch.randint(-2, 3, out.shape).float()
    mask = [True] * 5
    found = separable.backward(grad.to(DEVICE), *tensors, *rest, mask, last=last_)
    double = [tensor.cpu().double() for tensor in tensors]
    wanted = reference.separable_conv_backward(grad.double(), *double, *rest, mask)
    assert all(exact(got.cpu(), want) for got, want in zip(found, wanted, strict=True))


def test_empty_batch():
    tensors = arguments_of(small_integers(torch.Generator().manual_seed(0)), (4, 5), 6, 1, 8, (3, 3))
    tensors[0] = tensors[0][:0]
    assert separable.fused(*tensors, *SAME, "none", "none", "none").shape == (0, 8, 4, 5)


def test_separable_runs_where_it_pays(monkeypatch):
    def runs(dtype=torch.bfloat16, channels=144, outputs=24, size=56, batch=8, last_=True, kernel=3):
        x = torch.empty(batch, channels, size, size, dtype=dtype, device="meta")
        weights = torch.empty(channels, 1, kernel, kernel), torch.empty(outputs, channels, 1, 1)
        half = kernel // 2
        return separable.separable_runs(x, *weights, [1, 1], [half] * 4, [1, 1], last=last_)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert runs()
    assert runs(torch.float16, kernel=5)
    assert not runs(last_=False)
    assert not runs(outputs=320)
    assert not runs(channels=960, outputs=160, size=7, batch=1)  # too few programs for so long a loop
    assert runs(channels=960, outputs=160, size=7, batch=128)
    assert not runs(torch.float32)
    monkeypatch.setattr(separable_launch, "precision_of", lambda dtype: "tf32")
    assert runs(torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert not runs(torch.float16)


def test_precision_follows_pytorch(monkeypatch):
    for allowed, precision in ((True, "tf32"), (False, "ieee")):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        assert PRECISION_OF(torch.float32) == precision
        assert PRECISION_OF(torch.bfloat16) == "ieee"


def test_blocks_fill_warps():
    for outputs in (1, 16, 24, 112, 160, 256):
        for channels, size, kernel in ((32, 112, 3), (960, 7, 3), (240, 28, 5)):
            shape, _ = shape_of(
                (1, channels, size, size), (channels, 1, kernel, kernel), (1, 1), (kernel // 2,) * 4, (1, 1)
            )
            blocks = separable_launch.blocks_of(shape, outputs)
            assert blocks.rows * blocks.groups >= 16
            assert blocks.outputs >= outputs
            assert blocks.rows * blocks.groups * blocks.columns * blocks.outputs <= blocks.warps * 32 * 64
