"""Transposed depthwise convolution layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dwsep import _functorch, functional
from dwsep.errors import ArgumentError
from dwsep.geometry import ConvGeometry, check_int
from dwsep.nn import _depthwise, _parts
from dwsep.ops._layout import empty_output

IntOrInts = functional.IntOrInts
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class _Transposed(torch.autograd.Function):
    """The gradient of a depthwise convolution's input, as an output: the native kernels with their parts swapped.

    ``rest``: the convolution's stride, pads and dilation; the output's size, and torch's function with its arguments,
    which gradients of gradients are left to.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        geometry, size, ctx.stock = rest
        ctx.geometry = geometry
        ctx.save_for_backward(x, weight, bias)
        shape = empty_output(x, (x.shape[0], x.shape[1], *size))
        backward = torch.ops.dwsep.depthwise_conv_backward
        out = backward(x, shape, weight, None, *geometry, "none", [True, False, False])[0]
        return out if bias is None else out.add_(bias.view(-1, *(1,) * len(size)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # somebody differentiates the gradients
            wanted = [tensor for tensor, needed in zip((x, weight, bias), needs, strict=True) if needed]
            function, rest = ctx.stock
            found = iter(torch.autograd.grad(function(x, weight, bias, *rest), wanted, grad, create_graph=True))
            return (*(next(found) if needed else None for needed in needs), None, None, None)
        ops, geometry = torch.ops.dwsep, ctx.geometry
        of_x = ops.depthwise_conv(grad, weight, None, *geometry, "none") if needs[0] else None
        of_weight = of_bias = None
        if needs[1]:
            of_weight = ops.depthwise_conv_backward(x, grad, weight, None, *geometry, "none", [False, True, False])[1]
        if needs[2]:
            of_bias = grad.sum((0, *range(2, grad.dim())))
        return of_x, of_weight, of_bias, None, None, None


class _DepthwiseConvTranspose(_parts.WithGeometry):
    """Transposed depthwise convolution over ``ndim`` axes; the thin classes below fix ``ndim``.

    It is what the gradient of a depthwise convolution's input is, and with one output per channel in float32 on a CPU
    computed as that.
    """

    ndim: int

    def __init__(
        self,
        in_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        dilation: IntOrInts = 1,
        *,
        depth_multiplier: int = 1,
        bias: bool = True,
        activation: _parts.Activation = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels, low=1)
        self.depth_multiplier = check_int("depth_multiplier", depth_multiplier, low=1)
        self.out_channels = check_int("in_channels * depth_multiplier", in_channels * depth_multiplier, low=1)
        # The convolution whose transpose this is.
        self.geometry = ConvGeometry.make(self.ndim, kernel_size, stride, 0, dilation)
        self.padding = _sizes("padding", padding, self.ndim)
        self.output_padding = _sizes("output_padding", output_padding, self.ndim)
        for extra, s, d in zip(self.output_padding, self.geometry.stride, self.geometry.dilation, strict=True):
            if extra >= max(s, d):
                raise ArgumentError(
                    f"output_padding must be smaller than stride or dilation, got {self.output_padding} with stride "
                    f"{self.geometry.stride} and dilation {self.geometry.dilation}"
                )
        factory = {"device": device, "dtype": dtype}
        # torch's layout for a grouped transposed convolution: inputs first.
        self.weight = nn.Parameter(
            torch.empty(self.in_channels, depth_multiplier, *self.geometry.kernel_size, **factory)
        )
        if bias:
            self.bias = nn.Parameter(torch.empty(self.out_channels, **factory))
        else:
            self.register_parameter("bias", None)
        self.activation = _parts.make_activation("activation", activation)
        self.reset_parameters()

    @property
    def groups(self) -> int:
        """As ``torch.nn.ConvTranspose2d`` names it: the number of input channels."""
        return self.in_channels

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly within 1 / sqrt(depth_multiplier * taps), as torch does for this shape."""
        _parts.init_factor_(self.weight, self.bias, self.depth_multiplier * self.geometry.taps)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """Elements per axis of the output for an input of ``input_size`` elements per axis.

        Raises:
            ArgumentError: an axis would have no output.
        """
        g = self.geometry
        sizes = tuple(
            (n - 1) * s - 2 * low + wide + extra
            for n, s, low, wide, extra in zip(
                input_size, g.stride, self.padding, g.effective_kernel_size, self.output_padding, strict=True
            )
        )
        if min(sizes) < 1:
            raise ArgumentError(f"output size must be at least 1 along every axis, got {sizes} for {tuple(input_size)}")
        return sizes

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *spatial), or unbatched (C, *spatial), to (N, C * depth_multiplier, *out spatial)."""
        if x.dim() == self.ndim + 1:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if x.dim() != self.ndim + 2 or x.shape[1] != self.in_channels:
            raise ArgumentError(
                f"x must be (N, {self.in_channels}, {self.ndim} spatial), or that without N, got {tuple(x.shape)}"
            )
        out_size, g = self.output_size(x.shape[2:]), self.geometry
        stock = _TRANSPOSED[self.ndim]
        rest = (g.stride, self.padding, self.output_padding, self.in_channels, g.dilation)
        if self._runs_natively(x):
            pads = [side for p, e in zip(self.padding, self.output_padding, strict=True) for side in (p, p - e)]
            geometry = list(g.stride), pads, list(g.dilation)
            out = _Transposed.apply(x, self.weight, self.bias, geometry, out_size, (stock, rest))
        else:
            out = stock(x, self.weight, self.bias, *rest)
        return out if self.activation is None else self.activation(out)

    def _runs_natively(self, x: Tensor) -> bool:
        """Whether the native kernels, the faster way, know the layer and nothing but autograd has to see it run."""
        if torch.compiler.is_compiling() or x.dtype != torch.float32 or self.weight.dtype != x.dtype:
            return False
        if self.weight.shape[1] != 1 or type(x) is not Tensor or _functorch.is_active():
            return False
        return functional.packs(self.weight) and not torch.is_autocast_enabled("cpu")

    def extra_repr(self) -> str:
        """Arguments as the constructor takes them, those at their default left out."""
        g, short = self.geometry, _depthwise._short
        parts = [str(self.in_channels), f"kernel_size={short(g.kernel_size)}"]
        parts += [f"stride={short(g.stride)}"] if set(g.stride) != {1} else []
        parts += [f"padding={short(self.padding)}"] if any(self.padding) else []
        parts += [f"output_padding={short(self.output_padding)}"] if any(self.output_padding) else []
        parts += [f"dilation={short(g.dilation)}"] if set(g.dilation) != {1} else []
        parts += [f"depth_multiplier={self.depth_multiplier}"] if self.depth_multiplier != 1 else []
        parts += ["bias=False"] if self.bias is None else []
        return ", ".join(parts)


def _sizes(argument: str, value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """``value`` per axis, at least 0."""
    entries = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * ndim
    if len(entries) == 1:
        entries = entries * ndim
    if len(entries) != ndim:
        raise ArgumentError(f"{argument} must have 1 or {ndim} entries, got {len(entries)}: {value!r}")
    return tuple(check_int(argument, entry, low=0) for entry in entries)


class DepthwiseConvTranspose1d(_DepthwiseConvTranspose):
    """Transposed depthwise convolution over one axis; arguments as :class:`DepthwiseConvTranspose2d`.

    Example:
        >>> import torch
        >>> DepthwiseConvTranspose1d(8, 4, stride=2, padding=1)(torch.ones(2, 8, 10)).shape
        torch.Size([2, 8, 20])
    """

    ndim = 1


class DepthwiseConvTranspose2d(_DepthwiseConvTranspose):
    """The transpose of a depthwise convolution: every channel is upsampled with kernels of its own.

    Its result is that of ``torch.nn.ConvTranspose2d(C, C * M, ..., groups=C)``, whose weights it takes. In inference on
    a CPU it runs as a depthwise convolution of the input with stride * stride kernels per channel.

    Args:
        in_channels: C of the input (N, C, H, W).
        kernel_size: taps, one integer or (KH, KW).
        stride: outputs per input along an axis.
        padding: outputs cut off at either end of an axis.
        output_padding: outputs added at the high end of an axis; smaller than stride or dilation.
        dilation: distance of neighbouring taps, in elements of the output.
        depth_multiplier: outputs per input channel, M; the output has C * M channels.
        bias: whether to add a bias per output channel.
        activation: name, module, module class or function, applied to the result.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) an argument out of its range or an unknown name.
        TypeError: an argument of the wrong Python type.

    Attributes:
        weight: (C, M, KH, KW), drawn uniformly within 1 / sqrt(M * KH * KW).
        bias: (C * M,) or ``None``, drawn from the same.

    Cost: C * M * KH * KW macs per input pixel, zeros of kernels that stride does not divide not counted, and a copy of
    the output.

    Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, section 4; Shi
    et al., arXiv:1609.07009, for the phases.

    Example:
        >>> import torch
        >>> layer = DepthwiseConvTranspose2d(32, 3, stride=2, padding=1, output_padding=1)
        >>> layer(torch.ones(1, 32, 8, 8)).shape
        torch.Size([1, 32, 16, 16])
    """

    ndim = 2


class DepthwiseConvTranspose3d(_DepthwiseConvTranspose):
    """Transposed depthwise convolution over three axes; arguments as :class:`DepthwiseConvTranspose2d`.

    Example:
        >>> import torch
        >>> DepthwiseConvTranspose3d(4, 2, stride=(1, 2, 2))(torch.ones(1, 4, 2, 8, 8)).shape
        torch.Size([1, 4, 3, 16, 16])
    """

    ndim = 3
