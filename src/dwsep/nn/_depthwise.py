"""Depthwise convolution layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dwsep import functional
from dwsep.errors import ArgumentError, unknown_name
from dwsep.geometry import ConvGeometry, Padding, check_int
from dwsep.nn import _parts, _sequences

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
IntOrInts = functional.IntOrInts


class _DepthwiseConv(_parts.WithGeometry):
    """Depthwise convolution over ``ndim`` axes; the thin classes below fix ``ndim``."""

    ndim: int

    def __init__(
        self,
        in_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: Padding = 0,
        dilation: IntOrInts = 1,
        *,
        depth_multiplier: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        activation: _parts.Activation = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels, low=1)
        self.depth_multiplier = check_int("depth_multiplier", depth_multiplier, low=1)
        self.out_channels = check_int("in_channels * depth_multiplier", in_channels * depth_multiplier, low=1)
        self.geometry = ConvGeometry.make(self.ndim, kernel_size, stride, padding, dilation)
        self.padding = padding
        if padding_mode not in PADDING_MODES:
            raise unknown_name("padding_mode", padding_mode, PADDING_MODES)
        self.padding_mode = padding_mode
        factory = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(self.out_channels, 1, *self.geometry.kernel_size, **factory))
        if bias:
            self.bias = nn.Parameter(torch.empty(self.out_channels, **factory))
        else:
            self.register_parameter("bias", None)
        self.activation = _parts.make_activation("activation", activation)
        self.reset_parameters()

    @property
    def groups(self) -> int:
        """As ``torch.nn.Conv2d`` names it: the number of input channels."""
        return self.in_channels

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly within 1 / sqrt(taps), a depthwise kernel's fan-in."""
        _parts.init_factor_(self.weight, self.bias, self.geometry.taps)

    def padded(self, x: Tensor) -> tuple[Tensor, ConvGeometry]:
        """The input and the geometry to convolve it with: padding modes other than zeros are a pass before it."""
        # The operators take any divisor of the weight's channels: to them it is another depth multiplier.
        has_rank = isinstance(x, Tensor) and x.dim() in (self.ndim + 1, self.ndim + 2)
        if has_rank and x.shape[-self.ndim - 1] != self.in_channels:
            raise ArgumentError(f"x must have {self.in_channels} channels, got shape {tuple(x.shape)}")
        if self.padding_mode == "zeros":
            return x, self.geometry
        geometry = self.geometry
        pads = geometry.pads(x.shape[-self.ndim :])
        flat = [side for pair in reversed(pads) for side in pair]
        # torch pads with a mode only where an axis gains elements, and crops only in the constant mode.
        gains = [max(side, 0) for side in flat]
        crops = [min(side, 0) for side in flat]
        if any(crops):
            x = F.pad(x, crops)
        if any(gains):
            x = F.pad(x, gains, mode=self.padding_mode)
        zero = ((0, 0),) * self.ndim
        return x, ConvGeometry(self.ndim, geometry.kernel_size, geometry.stride, geometry.dilation, zero)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *spatial), or unbatched (C, *spatial), to (N, C * depth_multiplier, *out spatial)."""
        x, geometry = self.padded(x)
        fused = _parts.fused_name(self.activation)
        out = functional.depthwise_conv(x, self.weight, self.bias, geometry, fused or "none", "auto")
        return out if fused is not None else self.activation(out)  # type: ignore[misc]

    def extra_repr(self) -> str:
        """Arguments as the constructor takes them, those at their default left out."""
        g = self.geometry
        parts = [str(self.in_channels), f"kernel_size={_short(g.kernel_size)}"]
        parts += [f"stride={_short(g.stride)}"] if set(g.stride) != {1} else []
        parts += [f"padding={self.padding!r}"] if self.padding != 0 else []
        parts += [f"dilation={_short(g.dilation)}"] if set(g.dilation) != {1} else []
        parts += [f"depth_multiplier={self.depth_multiplier}"] if self.depth_multiplier != 1 else []
        parts += ["bias=False"] if self.bias is None else []
        parts += [f"padding_mode={self.padding_mode!r}"] if self.padding_mode != "zeros" else []
        return ", ".join(parts)


def _short(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else str(values)


class DepthwiseConv1d(_DepthwiseConv):
    """Depthwise convolution over one axis; arguments as :class:`DepthwiseConv2d`, and ``padding="causal"``.

    A causal layer also runs chunk by chunk (:meth:`step`); :meth:`forward_ragged` runs sequences of different lengths.
    The short convolutions of state-space models are ``DepthwiseConv1d(C, 4, padding="causal", activation="silu")``.

    Example:
        >>> import torch
        >>> DepthwiseConv1d(8, 4, padding="causal")(torch.ones(2, 8, 10)).shape
        torch.Size([2, 8, 10])
    """

    ndim = 1

    @property
    def history(self) -> int:
        """Past elements which an output needs: dilation * (kernel_size - 1)."""
        return self.geometry.effective_kernel_size[0] - 1

    def initial_state(self, batch_size: int = 1) -> Tensor:
        """The state before the first chunk: zeros, (batch_size, C, :attr:`history` + stride - 1)."""
        return _sequences.initial_state(self, batch_size)

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the next chunk of a stream: its output, and the state that the chunk after needs.

        On a CPU the chunks' outputs are bit for bit those of the whole, for any kernel, dilation and chunking, in
        float32 and bfloat16; elsewhere equal to rounding. Differentiable, also through the state.

        With a stride s, output j of the whole comes with the chunk that has element s * j: a chunk shorter than s may
        have none, and the state grows from :attr:`history` to :attr:`history` + s - 1 elements between two outputs.

        Args:
            x: (N, C, T), any T of at least 1; with stride 1 also (N, C) for one time step.
            state: what the call before returned; ``None`` for zeros, as :meth:`initial_state` gives them.

        Returns:
            The output, (N, C * depth_multiplier, T / stride, rounded either way) or (N, C * depth_multiplier), and the
            state for the next call, (N, C, :attr:`history`) with stride 1.

        Raises:
            ArgumentError: the layer is not causal, or a shape does not fit.

        Cost: the macs of T outputs, and a copy of state and chunk.

        Example:
            >>> import torch
            >>> layer = DepthwiseConv1d(4, 3, padding="causal", dilation=2, activation="silu")
            >>> x, state, outputs = torch.randn(1, 4, 5), None, []
            >>> for t in range(5):
            ...     out, state = layer.step(x[..., t], state)
            ...     outputs.append(out)
            >>> torch.equal(torch.stack(outputs, -1), layer(x))
            True
        """
        return _sequences.depthwise_step(self, x, state)

    def forward_ragged(self, x: Tensor, *, lengths: Any = None, cu_seqlens: Any = None) -> Tensor:
        """Run sequences of different lengths: the result of each is that of running it alone.

        Args:
            x: (N, C, L), sequences padded at their end with anything, and ``lengths``; or (1, C, total), one after the
                other, and ``cu_seqlens``.
            lengths: (N,) integers within 1 .. L: elements of each sequence.
            cu_seqlens: (B + 1,) integers from 0 to total: where each sequence starts, and the end. Needs a layer of
                stride 1 whose output is as long as its input.

        Returns:
            (N, C * depth_multiplier, OL), zero behind each sequence's end; or (1, C * depth_multiplier, total).

        Raises:
            ArgumentError: lengths or cu_seqlens break a rule, or the layer cannot run ragged: padding ``"same_tf"``,
                a padding mode other than zeros, a norm in training.

        Cost: that of the padded batch; with cu_seqlens that of ``total`` and :attr:`history` elements per sequence, and
        two copies.

        Example:
            >>> import torch
            >>> layer = DepthwiseConv1d(4, 3, padding="same")
            >>> out = layer.forward_ragged(torch.randn(2, 4, 10), lengths=[10, 6])
            >>> out[1, :, 6:].abs().max().item()
            0.0
        """
        return _sequences.ragged(self, x, lengths, cu_seqlens)


class DepthwiseConv2d(_DepthwiseConv):
    """Depthwise convolution: every input channel has ``depth_multiplier`` kernels of its own.

    Args:
        in_channels: C of the input (N, C, H, W).
        kernel_size: taps, one integer or (KH, KW).
        stride: step of the window, in elements; may differ per axis, and may be combined with dilation.
        padding: ``"same"``, ``"same_tf"``, ``"valid"``, an integer, or per axis an integer or (low, high) pair.
        dilation: distance of neighbouring taps, in elements.
        depth_multiplier: outputs per input channel, M; the output has C * M channels.
        bias: whether to add a bias per output channel.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``, as in ``torch.nn.Conv2d``.
        activation: name, module, module class or function, applied to the result.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) an argument out of its range or an unknown name.
        TypeError: an argument of the wrong Python type.

    Attributes:
        weight: (C * M, 1, KH, KW), drawn uniformly within 1 / sqrt(KH * KW).
        bias: (C * M,) or ``None``, drawn from the same.

    Cost: C * M * KH * KW macs per output pixel.

    Example:
        >>> import torch
        >>> layer = DepthwiseConv2d(32, 3, stride=(2, 1), padding="same", dilation=2)
        >>> layer(torch.ones(1, 32, 16, 16)).shape
        torch.Size([1, 32, 8, 16])
    """

    ndim = 2


class DepthwiseConv3d(_DepthwiseConv):
    """Depthwise convolution over three axes; arguments as :class:`DepthwiseConv2d`.

    Example:
        >>> import torch
        >>> DepthwiseConv3d(4, (1, 3, 3), padding="same")(torch.ones(1, 4, 2, 8, 8)).shape
        torch.Size([1, 4, 2, 8, 8])
    """

    ndim = 3
