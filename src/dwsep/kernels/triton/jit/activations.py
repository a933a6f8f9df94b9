"""The fused activations and their derivatives, on float32 tiles: what ``dwsep.kernels.activations`` is for tensors."""

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


# Comparisons are written so that a NaN comes through, as it does in torch.
@triton.jit
def activate(x, NAME: tl.constexpr):
    """The activation of that name."""
    if NAME == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif NAME == "relu6":
        x = tl.where(x < 0, 0.0, tl.where(x > 6, 6.0, x))
    elif NAME == "silu":
        x = x * _sigmoid(x)
    elif NAME == "hardswish":
        gate = x + 3.0
        x = x * tl.where(gate < 0, 0.0, tl.where(gate > 6, 6.0, gate)) * (1.0 / 6.0)
    elif NAME == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return x


@triton.jit
def through_activation(grad, x, NAME: tl.constexpr):
    """``grad`` times the activation's derivative at ``x``."""
    if NAME == "relu":
        grad = tl.where(x <= 0, 0.0, grad)
    elif NAME == "relu6":
        grad = tl.where((x <= 0) | (x >= 6), 0.0, grad)
    elif NAME == "silu":
        sigmoid = _sigmoid(x)
        grad = grad * sigmoid * (1.0 + x * (1.0 - sigmoid))
    elif NAME == "hardswish":
        grad = tl.where(x <= -3, 0.0, tl.where(x < 3, grad * (x * (1.0 / 3.0) + 0.5), grad))
    elif NAME == "gelu":
        normal = tl.exp(-0.5 * x * x) * 0.3989422804014327
        grad = grad * (0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * normal)
    return grad
