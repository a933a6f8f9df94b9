"""Depthwise separable convolution layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dwsep import functional
from dwsep.errors import ArgumentError, unknown_name
from dwsep.geometry import Padding, check_int
from dwsep.nn import _depthwise, _folding, _parts, _plan, _sequences

ORDERS = ("depthwise_first", "pointwise_first")
IntOrInts = functional.IntOrInts

_POINTWISE: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_DEPTHWISE: dict[int, type[_depthwise._DepthwiseConv]] = {
    1: _depthwise.DepthwiseConv1d,
    2: _depthwise.DepthwiseConv2d,
    3: _depthwise.DepthwiseConv3d,
}


class _DepthwiseSeparableConv(nn.Module):
    """Separable convolution over ``ndim`` axes; the thin classes below fix ``ndim``."""

    ndim: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts = 3,
        stride: IntOrInts = 1,
        padding: Padding = "same",
        dilation: IntOrInts = 1,
        *,
        depth_multiplier: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        order: str = "depthwise_first",
        norm: _parts.Norm = None,
        activation: _parts.Activation = None,
        inner_norm: _parts.Norm = None,
        inner_activation: _parts.Activation = None,
        residual: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels, low=1)
        self.out_channels = check_int("out_channels", out_channels, low=1)
        self.depth_multiplier = check_int("depth_multiplier", depth_multiplier, low=1)
        if order not in ORDERS:
            raise unknown_name("order", order, ORDERS)
        self.order = order
        functional.residual_name(residual)
        self.residual = residual
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        depthwise_in = self.in_channels
        if order == "pointwise_first":
            if out_channels % depth_multiplier:
                raise ArgumentError(
                    f"order='pointwise_first' needs out_channels to be a multiple of depth_multiplier, got "
                    f"{out_channels} and {depth_multiplier}"
                )
            depthwise_in = out_channels // depth_multiplier
        depthwise = _DEPTHWISE[self.ndim](
            depthwise_in,
            kernel_size,
            stride,
            padding,
            dilation,
            depth_multiplier=depth_multiplier,
            bias=bias,
            padding_mode=padding_mode,
            **factory,
        )
        if order == "depthwise_first":
            pointwise = _POINTWISE[self.ndim](depthwise.out_channels, out_channels, 1, bias=bias, **factory)
            self.depthwise, inner_channels = depthwise, depthwise.out_channels
        else:
            pointwise = _POINTWISE[self.ndim](self.in_channels, depthwise_in, 1, bias=bias, **factory)
            self.pointwise, inner_channels = pointwise, depthwise_in
        # Submodules are registered in the order in which they run, which is how a repr and a state_dict list them.
        self.inner_norm = _parts.make_norm("inner_norm", inner_norm, self.ndim, inner_channels, factory)
        self.inner_activation = _parts.make_activation("inner_activation", inner_activation)
        if order == "depthwise_first":
            self.pointwise = pointwise
        else:
            self.depthwise = depthwise
        self.norm = _parts.make_norm("norm", norm, self.ndim, self.out_channels, factory)
        self.activation = _parts.make_activation("activation", activation)
        self._check_residual()
        self._init_pointwise()
        self._plan = _plan.PlanMemory()

    def _check_residual(self) -> None:
        g = self.depthwise.geometry
        if self.residual == "depthwise":
            if self.order == "depthwise_first" and self.depthwise.out_channels != self.out_channels:
                raise ArgumentError(
                    "residual='depthwise' needs in_channels * depth_multiplier == out_channels, got "
                    f"{self.in_channels} * {self.depth_multiplier} and {self.out_channels}"
                )
            if self.order == "pointwise_first" and self.depth_multiplier != 1:
                raise ArgumentError(
                    "residual='depthwise' with order='pointwise_first' needs depth_multiplier == 1, got "
                    f"{self.depth_multiplier}"
                )
        if self.residual == "input" and self.in_channels != self.out_channels:
            raise ArgumentError(
                f"residual='input' needs in_channels == out_channels, got {self.in_channels} and {self.out_channels}"
            )
        adds_across_window = self.residual == "input" or (
            self.residual == "depthwise" and self.order == "pointwise_first"
        )
        if adds_across_window and set(g.stride) != {1}:
            raise ArgumentError(f"residual={self.residual!r} needs stride 1, got {g.stride}")

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Taps of the depthwise factor per axis."""
        return self.depthwise.geometry.kernel_size

    @property
    def stride(self) -> tuple[int, ...]:
        """Step of the depthwise window per axis, in elements."""
        return self.depthwise.geometry.stride

    @property
    def padding(self) -> Padding:
        """Padding of the depthwise factor, as it was given."""
        return self.depthwise.padding

    @property
    def dilation(self) -> tuple[int, ...]:
        """Distance of neighbouring taps of the depthwise factor per axis, in elements."""
        return self.depthwise.geometry.dilation

    @property
    def padding_mode(self) -> str:
        """Padding mode of the depthwise factor."""
        return self.depthwise.padding_mode

    def train(self, mode: bool = True) -> _DepthwiseSeparableConv:
        """Switch between training and evaluation, and forget the weights prepared for inference."""
        self._plan.plan = None
        return super().train(mode)

    def _init_pointwise(self) -> None:
        _parts.init_factor_(self.pointwise.weight, self.pointwise.bias, self.pointwise.in_channels)

    def reset_parameters(self) -> None:
        """Draw both factors anew, each by its own fan-in, and reset the norms."""
        self.depthwise.reset_parameters()
        self._init_pointwise()
        for norm in (self.inner_norm, self.norm):
            if norm is not None and hasattr(norm, "reset_parameters"):
                norm.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, *spatial), or unbatched, to (N, out_channels, *out spatial)."""
        if x.dim() == self.ndim + 1:
            return self.forward(x.unsqueeze(0)).squeeze(0)  # batch norms take no unbatched input
        if self.order == "depthwise_first" and not self._normalises_by_batch():
            plan = None if torch.compiler.is_compiling() else self._plan.current(self)
            if plan is not None:
                return plan.run(self, x)
            fused = _folding.fused_arguments(self)
            if fused is not None:
                x, geometry = self.depthwise.padded(x)
                return functional.depthwise_separable_conv(x, *fused.weights, geometry, *fused.options, "auto")
        return self._composed(x)

    def _normalises_by_batch(self) -> bool:
        """Whether a norm is in training, so that nothing can be folded: asked first, since training asks it always."""
        inner_norm, norm = self.inner_norm, self.norm
        return (inner_norm is not None and inner_norm.training) or (norm is not None and norm.training)

    def _composed(
        self, x: Tensor, *, check_sizes: bool = True, depthwise: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """The layer as the sequence of its submodules: any norm, any activation, any hook.

        With ``check_sizes=False`` torch.fx can read it, whose values have no size; ``depthwise`` runs in place of the
        submodule of that name.
        """
        first, second = depthwise or self.depthwise, self._mix()
        if self.order == "pointwise_first":
            first, second = second, first
        inner = out = first(x)
        for module in (self.inner_norm, self.inner_activation):
            out = inner = out if module is None else module(out)
        out = second(inner)
        if self.residual == "depthwise":
            if check_sizes:
                self._check_same_size("the first factor's output", inner, out)
            out = out + inner
        for module in (self.norm, self.activation):
            out = out if module is None else module(out)
        if self.residual == "input":
            if check_sizes:
                self._check_same_size("x", x, out)
            out = out + x
        return out

    def _mix(self) -> Callable[[Tensor], Tensor]:
        """What runs as the pointwise factor where the submodules run one by one."""
        return self.pointwise

    def _check_same_size(self, what: str, added: Tensor, out: Tensor) -> None:
        if added.shape != out.shape:
            raise ArgumentError(
                f"residual={self.residual!r} adds {what}, which must have the output's shape, got "
                f"{tuple(added.shape)} and {tuple(out.shape)}"
            )

    def extra_repr(self) -> str:
        """Arguments as the constructor takes them, those at their default left out."""
        d = self.depthwise
        parts = [str(self.in_channels), str(self.out_channels), f"kernel_size={_depthwise._short(d.kernel_size)}"]
        parts += [f"stride={_depthwise._short(d.stride)}"] if set(d.stride) != {1} else []
        parts += [f"padding={d.padding!r}"] if d.padding != "same" else []
        parts += [f"dilation={_depthwise._short(d.dilation)}"] if set(d.dilation) != {1} else []
        parts += [f"depth_multiplier={self.depth_multiplier}"] if self.depth_multiplier != 1 else []
        parts += [f"order={self.order!r}"] if self.order != "depthwise_first" else []
        parts += [f"residual={self.residual!r}"] if self.residual else []
        return ", ".join(parts)


class DepthwiseSeparableConv1d(_DepthwiseSeparableConv):
    """Depthwise separable convolution over one axis; arguments as :class:`DepthwiseSeparableConv2d`.

    ``padding="causal"`` pads the past only, so that an output never looks ahead; such a layer also runs chunk by chunk
    (:meth:`step`). :meth:`forward_ragged` runs sequences of different lengths.

    Example:
        >>> import torch
        >>> DepthwiseSeparableConv1d(8, 16, 5, padding="causal")(torch.ones(2, 8, 10)).shape
        torch.Size([2, 16, 10])
    """

    ndim = 1

    @property
    def history(self) -> int:
        """Past elements of the depthwise factor's input which an output needs: dilation * (kernel_size - 1)."""
        return self.depthwise.history  # type: ignore[union-attr]

    def initial_state(self, batch_size: int = 1) -> Tensor:
        """The state before the first chunk: zeros, (batch_size, C of the depthwise factor, history + stride - 1)."""
        return self.depthwise.initial_state(batch_size)  # type: ignore[operator]

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the next chunk of a stream; see :meth:`DepthwiseConv1d.step`.

        The chunks' outputs are bit for bit those of the whole, for any kernel, dilation and chunking, where the layer
        runs as one native operator: float32 on a CPU, order ``"depthwise_first"``, activations with a name, and norms,
        if any, in evaluation without gradients. Where its parts run one by one, equal as far as torch's norms and
        activations are (its SiLU is another at the end of a tensor); in other dtypes, equal to rounding.

        Args:
            x: (N, C, T), any T of at least 1; with stride 1 also (N, C) for one time step.
            state: what the call before returned; ``None`` for zeros.

        Returns:
            The output, (N, K, T / stride, rounded either way) or (N, K), and the state for the next call.

        Raises:
            ArgumentError: the layer is not causal, a norm is in training, or a shape does not fit.

        Example:
            >>> import torch
            >>> layer = DepthwiseSeparableConv1d(4, 8, 3, padding="causal", dilation=2)
            >>> x = torch.randn(1, 4, 10)
            >>> first, state = layer.step(x[..., :6])
            >>> second, state = layer.step(x[..., 6:], state)
            >>> torch.equal(torch.cat([first, second], -1), layer(x))
            True
        """
        return _sequences.separable_step(self, x, state)

    def _mix(self) -> Callable[[Tensor], Tensor]:
        """The native pointwise product for causal layers, whose bits a stream keeps: torch's depend on the length."""
        streams = self.padding == "causal" and not self._normalises_by_batch()
        if streams and not torch.compiler.is_compiling() and _sequences.is_plain_pointwise(self.pointwise):
            return functools.partial(_sequences.pointwise, self.pointwise)
        return self.pointwise

    def forward_ragged(self, x: Tensor, *, lengths: Any = None, cu_seqlens: Any = None) -> Tensor:
        """Run sequences of different lengths, none of which sees another; see :meth:`DepthwiseConv1d.forward_ragged`.

        Example:
            >>> import torch
            >>> layer = DepthwiseSeparableConv1d(4, 8, 3)
            >>> layer.forward_ragged(torch.randn(1, 4, 10), cu_seqlens=[0, 3, 10]).shape
            torch.Size([1, 8, 10])
        """
        return _sequences.ragged(self, x, lengths, cu_seqlens)


class DepthwiseSeparableConv2d(_DepthwiseSeparableConv):
    """A depthwise convolution and a pointwise one, with norm, activation and residual where networks put them.

    With ``order="depthwise_first"`` (Xception, MobileNet) the layer computes, in this order: ``depthwise``,
    ``inner_norm``, ``inner_activation``, ``pointwise``, ``norm``, ``activation``. ``order="pointwise_first"``
    (blueprint separable) swaps the two convolutions; the norms and activations keep their places.

    Args:
        in_channels: C of the input (N, C, H, W); any number.
        out_channels: K of the output (N, K, OH, OW); any number, smaller or larger than C.
        kernel_size: taps of the depthwise factor, one integer or (KH, KW).
        stride: step of the depthwise window, in elements; may differ per axis and be combined with dilation.
        padding: ``"same"`` (ceil(n / stride) outputs), ``"same_tf"`` (TensorFlow's asymmetric rule), ``"valid"``, an
            integer, or per axis an integer or (low, high) pair, where negative crops.
        dilation: distance of neighbouring taps, in elements.
        depth_multiplier: outputs of the depthwise factor per input channel.
        bias: whether each factor has a bias; a norm after a factor makes that factor's bias redundant.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``, as in ``torch.nn.Conv2d``.
        order: ``"depthwise_first"`` or ``"pointwise_first"``.
        norm: after the second factor: ``"batch"``, a module, or a callable from channels to a module.
        activation: after ``norm``: ``"relu"``, ``"relu6"``, ``"silu"``, ``"hardswish"``, ``"gelu"``, a module, a
            module class, or a function of a tensor.
        inner_norm: between the factors, as ``norm``.
        inner_activation: between the factors after ``inner_norm``, as ``activation``.
        residual: ``"input"`` adds x to the result (needs C == K, stride 1); ``"depthwise"`` adds what the second factor
            takes to what it gives, before norm and activation: y = D + P(D) (needs C * depth_multiplier == K).
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) an argument out of its range or an unknown name.
        TypeError: an argument of the wrong Python type.

    Initialisation: each factor uniformly within 1 / sqrt of its own fan-in: KH * KW for the depthwise kernels, the
    number of its input channels for the pointwise one, as ``torch.nn.Conv2d`` does for either.

    Cost: C * M * (KH * KW + K) macs per output pixel; a dense layer takes C * K * KH * KW.

    Source: Chollet, "Xception", arXiv:1610.02357; Howard et al., "MobileNets", arXiv:1704.04861; Haase and Amthor,
    "Rethinking depthwise separable convolutions", arXiv:2003.13549, for the pointwise-first order.

    Example:
        >>> import torch
        >>> layer = DepthwiseSeparableConv2d(32, 64, 3, 1, 1)
        >>> layer(torch.ones(1, 32, 8, 8)).shape
        torch.Size([1, 64, 8, 8])
    """

    ndim = 2


class DepthwiseSeparableConv3d(_DepthwiseSeparableConv):
    """Depthwise separable convolution over three axes; arguments as :class:`DepthwiseSeparableConv2d`.

    Example:
        >>> import torch
        >>> DepthwiseSeparableConv3d(4, 8, (1, 3, 3), stride=(1, 2, 2))(torch.ones(1, 4, 2, 8, 8)).shape
        torch.Size([1, 8, 2, 4, 4])
    """

    ndim = 3
