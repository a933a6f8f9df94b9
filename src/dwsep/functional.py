"""Public functions: normalise and check the arguments, choose the kernel, call it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dwsep import dispatch, ops
from dwsep.errors import ArgumentError, unknown_name
from dwsep.geometry import ConvGeometry, Padding
from dwsep.kernels.activations import activation_name
from dwsep.ops._layout import in_layout_of, is_channels_last

__all__ = [
    "depthwise_conv1d",
    "depthwise_conv2d",
    "depthwise_conv3d",
    "depthwise_separable_conv1d",
    "depthwise_separable_conv2d",
    "depthwise_separable_conv3d",
]

RESIDUALS = ("input", "depthwise")
IntOrInts = int | Sequence[int]

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _check_tensor(argument: str, value: object, x: Tensor, shape: tuple[int | None, ...], autocast: bool) -> None:
    """Whether a parameter fits the input; ``None`` in ``shape`` takes any positive size."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument} must be a tensor, got {type(value).__name__}")
    if value.dim() != len(shape) or any(n != w if w is not None else n < 1 for n, w in zip(value.shape, shape)):
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise ArgumentError(f"{argument} must have shape ({wanted}), got {tuple(value.shape)}")
    if value.dtype != x.dtype and not autocast:
        raise ArgumentError(f"{argument} must have the dtype of x, {x.dtype}, got {value.dtype}")
    if value.device != x.device:
        raise ArgumentError(f"{argument} must be on the device of x, {x.device}, got {value.device}")


def _check_input(x: object, weight: object, ndim: int) -> tuple[Tensor, bool, bool]:
    """The input with a batch axis, whether it had one, and whether autocast is on."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor, got {type(weight).__name__}")
    if x.dim() not in (ndim + 1, ndim + 2):
        raise ArgumentError(
            f"x must have {ndim + 2} dimensions (N, C, {ndim} spatial), or {ndim + 1} unbatched, "
            f"got {x.dim()} with shape {tuple(x.shape)}"
        )
    if x.dtype not in _FLOATING:
        raise ArgumentError(f"x must have a floating-point dtype ({', '.join(map(str, _FLOATING))}), got {x.dtype}")
    batched = x.dim() == ndim + 2
    if not batched:
        x = x.unsqueeze(0)
    if x.shape[1] < 1:
        raise ArgumentError(f"x must have at least 1 channel, got shape {tuple(x.shape)}")
    device = x.device.type
    # Asking for autocast on a device which has none (meta) is an error in torch.
    known = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    return x, batched, known and torch.is_autocast_enabled(device)


def _check_depthwise_weight(argument: str, weight: Tensor, x: Tensor, ndim: int, autocast: bool) -> None:
    _check_tensor(argument, weight, x, (None, 1, *(None,) * ndim), autocast)
    if weight.shape[0] % x.shape[1]:
        raise ArgumentError(
            f"{argument} must have a multiple of x's {x.shape[1]} channels as its first size, got {weight.shape[0]}"
        )


def _effective_dtype(x: Tensor, autocast: bool) -> torch.dtype:
    return torch.get_autocast_dtype(x.device.type) if autocast and x.dtype != torch.float64 else x.dtype


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _flat(pairs: Sequence[tuple[int, int]]) -> list[int]:
    return [side for pair in pairs for side in pair]


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, activation: str, backend: str
) -> Tensor:
    """Depthwise convolution with its arguments normalised: what the functions and modules of every rank call."""
    ndim = geometry.ndim
    x, batched, autocast = _check_input(x, weight, ndim)
    _check_depthwise_weight("weight", weight, x, ndim, autocast)
    if bias is not None:
        _check_tensor("bias", bias, x, (weight.shape[0],), autocast)
    spatial = x.shape[2:]
    geometry.output_size(spatial)
    channels_last, gradient = is_channels_last(x), _wants_gradient(x, weight, bias)
    selection = dispatch.select(
        "depthwise_conv",
        geometry,
        _effective_dtype(x, autocast),
        x.device.type,
        backend,
        gradient=gradient,
        channels_last=channels_last,
        multiplied=weight.shape[0] != x.shape[1],
    )
    out = selection.kernel(
        x, weight, bias, geometry.stride, _flat(geometry.pads(spatial)), geometry.dilation, activation
    )
    return _finished(out, x, selection, batched)


def depthwise_separable_conv(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_bias: Tensor | None,
    geometry: ConvGeometry,
    inner_activation: str,
    activation: str,
    residual: str,
    backend: str,
) -> Tensor:
    """Separable convolution with its arguments normalised: what the functions and modules of every rank call."""
    ndim = geometry.ndim
    x, batched, autocast = _check_input(x, depthwise_weight, ndim)
    _check_depthwise_weight("depthwise_weight", depthwise_weight, x, ndim, autocast)
    inner_channels = depthwise_weight.shape[0]
    _check_tensor("pointwise_weight", pointwise_weight, x, (None, inner_channels, *(1,) * ndim), autocast)
    if depthwise_bias is not None:
        _check_tensor("depthwise_bias", depthwise_bias, x, (inner_channels,), autocast)
    if pointwise_bias is not None:
        _check_tensor("pointwise_bias", pointwise_bias, x, (pointwise_weight.shape[0],), autocast)
    spatial = x.shape[2:]
    out_spatial = geometry.output_size(spatial)
    if residual != "none":
        check_residual(residual, x, inner_channels, pointwise_weight.shape[0], out_spatial)
    selection = dispatch.select(
        "separable_conv",
        geometry,
        _effective_dtype(x, autocast),
        x.device.type,
        backend,
        gradient=_wants_gradient(x, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias),
        channels_last=is_channels_last(x),
    )
    out = selection.kernel(
        x,
        depthwise_weight,
        pointwise_weight,
        depthwise_bias,
        pointwise_bias,
        geometry.stride,
        _flat(geometry.pads(spatial)),
        geometry.dilation,
        inner_activation,
        activation,
        residual,
    )
    return _finished(out, x, selection, batched)


def _finished(out: Tensor, x: Tensor, selection: dispatch.Selection, batched: bool) -> Tensor:
    """The output in the memory format of ``x``, which PyTorch's convolutions keep for two axes alone."""
    if selection.backend == "reference" and x.dim() != 4:
        out = in_layout_of(x, out)
    return out if batched else out.squeeze(0)


def repeat_channels(x: Tensor, count: int) -> Tensor:
    """``x`` (N, C, ...) with every channel ``count`` times in a row, in the memory format of ``x``."""
    if is_channels_last(x):
        return x.movedim(1, -1).repeat_interleave(count, -1).movedim(-1, 1)
    return x.repeat_interleave(count, 1)


def packs(weight: Tensor) -> bool:
    """Whether the native kernels take weights like this one packed ahead, and pay."""
    runs = weight.device.type == "cpu" and weight.dtype in dispatch.CPU_DTYPES and ops.native_status().loaded
    return runs and not dispatch.stock_reasons("separable_conv", None, weight.dtype, False, True)


def check_residual(residual: str, x: Tensor, inner: int, out: int, out_spatial: tuple[int, ...]) -> None:
    """Raise where what a residual adds does not fit the output."""
    if residual == "depthwise" and inner != out:
        raise ArgumentError(
            f"residual='depthwise' adds the depthwise output, so its channels must equal the output's, got {inner} and "
            f"{out}"
        )
    if residual == "input" and (x.shape[1] != out or tuple(x.shape[2:]) != tuple(out_spatial)):
        raise ArgumentError(
            f"residual='input' adds x, so x and the output must have the same channels and spatial size, got "
            f"{(x.shape[1], *x.shape[2:])} and {(out, *out_spatial)}"
        )


def residual_name(value: str | None) -> str:
    """``value`` as the operator takes it (``"none"`` for ``None``), or an error listing the valid names."""
    if value is None:
        return "none"
    if value not in RESIDUALS:
        if not isinstance(value, str):
            raise TypeError(f"residual must be None or a name, got {value!r} of type {type(value).__name__}")
        raise unknown_name("residual", value, RESIDUALS)
    return value


def _kernel_size(argument: str, weight: object, ndim: int) -> tuple[int, ...]:
    if not isinstance(weight, Tensor):
        raise TypeError(f"{argument} must be a tensor, got {type(weight).__name__}")
    if weight.dim() != ndim + 2:
        raise ArgumentError(f"{argument} must have {ndim + 2} dimensions, got {tuple(weight.shape)}")
    return tuple(weight.shape[2:])


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
    geometry = ConvGeometry.make(ndim, _kernel_size("weight", weight, ndim), stride, padding, dilation)
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
    geometry = ConvGeometry.make(ndim, kernel, stride, padding, dilation)
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
