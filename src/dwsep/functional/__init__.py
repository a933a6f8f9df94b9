"""Public functions: normalise and check the arguments, choose the kernel, call it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from dwsep.errors import ArgumentError
from dwsep.functional._arguments import check_residual as check_residual
from dwsep.functional._arguments import residual_name
from dwsep.functional._normalised import depthwise_conv, depthwise_separable_conv
from dwsep.functional._normalised import packs as packs
from dwsep.geometry import ConvGeometry, Padding
from dwsep.kernels.activations import activation_name

__all__ = [
    "depthwise_conv1d",
    "depthwise_conv2d",
    "depthwise_conv3d",
    "depthwise_separable_conv1d",
    "depthwise_separable_conv2d",
    "depthwise_separable_conv3d",
]

IntOrInts = int | Sequence[int]


def _kernel_size(argument: str, weight: object, ndim: int) -> tuple[int, ...]:
    if not isinstance(weight, Tensor):
        raise TypeError(f"{argument} must be a tensor, got {type(weight).__name__}")
    if weight.dim() != ndim + 2:
        raise ArgumentError(f"{argument} must have {ndim + 2} dimensions, got {tuple(weight.shape)}")
    return tuple(weight.shape[2:])


def _geometry(
    ndim: int, kernel: tuple[int, ...], stride: IntOrInts, padding: Padding, dilation: IntOrInts
) -> ConvGeometry:
    # Plain values alone are looked up: True, which is an error, would be found under 1.
    plain = type(stride) is int and type(dilation) is int and type(padding) in (int, str)
    make = _known_geometry if plain and not torch.compiler.is_compiling() else ConvGeometry.make
    return make(ndim, kernel, stride, padding, dilation)


_known_geometry = functools.lru_cache(maxsize=1024)(ConvGeometry.make)


def _depthwise(
    ndim: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrInts,
    padding: Padding,
    dilation: IntOrInts,
    activation: str | None,
    backend: str,
) -> Tensor:
    geometry = _geometry(ndim, _kernel_size("weight", weight, ndim), stride, padding, dilation)
    return depthwise_conv(x, weight, bias, geometry, activation_name("activation", activation), backend)


def _separable(
    ndim: int,
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_bias: Tensor | None,
    stride: IntOrInts,
    padding: Padding,
    dilation: IntOrInts,
    inner_activation: str | None,
    activation: str | None,
    residual: str | None,
    backend: str,
) -> Tensor:
    kernel = _kernel_size("depthwise_weight", depthwise_weight, ndim)
    geometry = _geometry(ndim, kernel, stride, padding, dilation)
    return depthwise_separable_conv(
        x,
        depthwise_weight,
        pointwise_weight,
        depthwise_bias,
        pointwise_bias,
        geometry,
        activation_name("inner_activation", inner_activation),
        activation_name("activation", activation),
        residual_name(residual),
        backend,
    )


def depthwise_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    activation: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Depthwise convolution over one axis; see :func:`depthwise_conv2d`. ``padding="causal"`` looks back only.

    Example:
        >>> import torch
        >>> depthwise_conv1d(torch.ones(1, 2, 5), torch.ones(2, 1, 3), padding="causal")[0, 0].tolist()
        [1.0, 2.0, 3.0, 3.0, 3.0]
    """
    return _depthwise(1, x, weight, bias, stride, padding, dilation, activation, backend)


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    activation: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Convolve every channel with its own kernels, then add the bias and apply the activation.

    Args:
        x: (N, C, H, W) or unbatched (C, H, W), float32, float64, bfloat16 or float16.
        weight: (C * M, 1, KH, KW); output channel c * M + m is computed from input channel c.
        bias: (C * M,) or ``None``.
        stride: step of the window per axis, in elements.
        padding: as :meth:`dwsep.geometry.ConvGeometry.make` takes it.
        dilation: distance of neighbouring taps per axis, in elements.
        activation: ``"relu"``, ``"relu6"``, ``"silu"``, ``"hardswish"``, ``"gelu"`` or ``None``.
        backend: ``"auto"`` or a name from :func:`dwsep.backends`.

    Returns:
        (N, C * M, OH, OW) in the dtype of ``x`` and its memory format.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) a shape, dtype, device, value or name breaks a rule.
        TypeError: an argument of the wrong Python type.
        NotImplementedError: the named backend cannot run this problem.

    Cost: N * C * M * OH * OW * KH * KW macs; reads x and writes the output once.

    Source: Chollet, "Xception", arXiv:1610.02357, section 1.

    Example:
        >>> import torch
        >>> depthwise_conv2d(torch.ones(1, 4, 8, 8), torch.ones(8, 1, 3, 3), padding="same").shape
        torch.Size([1, 8, 8, 8])
    """
    return _depthwise(2, x, weight, bias, stride, padding, dilation, activation, backend)


def depthwise_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    activation: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Depthwise convolution over three axes; see :func:`depthwise_conv2d`.

    Example:
        >>> import torch
        >>> depthwise_conv3d(torch.ones(1, 2, 4, 4, 4), torch.ones(2, 1, 2, 2, 2), stride=2).shape
        torch.Size([1, 2, 2, 2, 2])
    """
    return _depthwise(3, x, weight, bias, stride, padding, dilation, activation, backend)


def depthwise_separable_conv1d(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None = None,
    pointwise_bias: Tensor | None = None,
    *,
    stride: IntOrInts = 1,
    padding: Padding = "same",
    dilation: IntOrInts = 1,
    inner_activation: str | None = None,
    activation: str | None = None,
    residual: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Depthwise separable convolution over one axis; see :func:`depthwise_separable_conv2d`.

    Example:
        >>> import torch
        >>> x, dw, pw = torch.ones(1, 2, 5), torch.ones(2, 1, 3), torch.ones(4, 2, 1)
        >>> depthwise_separable_conv1d(x, dw, pw).shape
        torch.Size([1, 4, 5])
    """
    return _separable(
        1, x, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias,
        stride, padding, dilation, inner_activation, activation, residual, backend,
    )  # fmt: skip


def depthwise_separable_conv2d(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None = None,
    pointwise_bias: Tensor | None = None,
    *,
    stride: IntOrInts = 1,
    padding: Padding = "same",
    dilation: IntOrInts = 1,
    inner_activation: str | None = None,
    activation: str | None = None,
    residual: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Depthwise convolution followed by a pointwise one, as one operator.

    With D = inner_activation(depthwise(x) + depthwise_bias) and Y = pointwise(D) + pointwise_bias, the result is
    activation(Y), activation(Y + D) for ``residual="depthwise"``, or activation(Y) + x for ``residual="input"``.

    Args:
        x: (N, C, H, W) or unbatched (C, H, W), float32, float64, bfloat16 or float16.
        depthwise_weight: (C * M, 1, KH, KW), M the depth multiplier.
        pointwise_weight: (K, C * M, 1, 1).
        depthwise_bias: (C * M,) or ``None``.
        pointwise_bias: (K,) or ``None``.
        stride: step of the depthwise window per axis, in elements.
        padding: of the depthwise factor, as :meth:`dwsep.geometry.ConvGeometry.make` takes it.
        dilation: distance of neighbouring taps per axis, in elements.
        inner_activation: between the factors: ``"relu"``, ``"relu6"``, ``"silu"``, ``"hardswish"``, ``"gelu"`` or
            ``None``.
        activation: after the pointwise factor, one of the same.
        residual: ``None``, ``"input"`` (needs C == K and an output of x's size) or ``"depthwise"`` (needs C * M == K).
        backend: ``"auto"`` or a name from :func:`dwsep.backends`.

    Returns:
        (N, K, OH, OW) in the dtype of ``x`` and its memory format.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) a shape, dtype, device, value or name breaks a rule.
        TypeError: an argument of the wrong Python type.
        NotImplementedError: the named backend cannot run this problem.

    Cost: N * OH * OW * C * M * (KH * KW + K) macs; the native kernel reads x and writes the output once, and saves
    its inputs only for backward.

    Source: Sifre, "Rigid-motion scattering for image classification", 2014, section 6.2; Howard et al., "MobileNets",
    arXiv:1704.04861, section 3.1.

    Example:
        >>> import torch
        >>> x, dw, pw = torch.ones(1, 32, 8, 8), torch.ones(32, 1, 3, 3), torch.ones(64, 32, 1, 1)
        >>> depthwise_separable_conv2d(x, dw, pw, stride=2, activation="relu").shape
        torch.Size([1, 64, 4, 4])
    """
    return _separable(
        2, x, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias,
        stride, padding, dilation, inner_activation, activation, residual, backend,
    )  # fmt: skip


def depthwise_separable_conv3d(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None = None,
    pointwise_bias: Tensor | None = None,
    *,
    stride: IntOrInts = 1,
    padding: Padding = "same",
    dilation: IntOrInts = 1,
    inner_activation: str | None = None,
    activation: str | None = None,
    residual: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Depthwise separable convolution over three axes; see :func:`depthwise_separable_conv2d`.

    Example:
        >>> import torch
        >>> x, dw, pw = torch.ones(1, 2, 4, 4, 4), torch.ones(2, 1, 3, 3, 3), torch.ones(4, 2, 1, 1, 1)
        >>> depthwise_separable_conv3d(x, dw, pw, stride=(1, 2, 2)).shape
        torch.Size([1, 4, 4, 2, 2])
    """
    return _separable(
        3, x, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias,
        stride, padding, dilation, inner_activation, activation, residual, backend,
    )  # fmt: skip
