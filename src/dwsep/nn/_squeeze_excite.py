"""Parts of blocks: squeeze and excite, drop path."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dwsep.errors import ArgumentError, unknown_name
from dwsep.geometry import check_int
from dwsep.nn import _parts

_GATES: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid}


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate which two 1x1 convolutions compute from the means of all channels.

    Args:
        channels: C of the input (N, C, H, W), and of the output.
        squeeze_channels: between the two convolutions.
        activation: between them: a name, a module, a module class, or a function of a tensor.
        gate: ``"sigmoid"``, ``"hardsigmoid"``, a module, or a module class.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) an argument out of its range or an unknown name.

    Cost: 2 * C * squeeze_channels macs per image, and one product per element.

    Source: Hu et al., "Squeeze-and-excitation networks", arXiv:1709.01507, section 3.

    Example:
        >>> import torch
        >>> SqueezeExcite(8, 2)(torch.ones(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        squeeze_channels: int,
        *,
        activation: _parts.Activation = "relu",
        gate: str | type[nn.Module] | nn.Module = "sigmoid",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_int("channels", channels, low=1)
        check_int("squeeze_channels", squeeze_channels, low=1)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.reduce = nn.Conv2d(channels, squeeze_channels, 1, **factory)
        self.activation = _parts.make_activation("activation", activation) or nn.Identity()
        self.expand = nn.Conv2d(squeeze_channels, channels, 1, **factory)
        self.gate = _gate(gate)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        means = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.expand(self.activation(self.reduce(means))))


def _gate(gate: Any) -> nn.Module:
    if isinstance(gate, str):
        if gate not in _GATES:
            raise unknown_name("gate", gate, tuple(_GATES))
        return _GATES[gate]()
    made = _parts.make_activation("gate", gate)
    if made is None:
        raise TypeError("gate must be a name, a module or its class, got None")
    return made


class DropPath(nn.Module):
    """In training, drop the whole of a residual branch for some samples of the batch; the others grow by as much.

    Args:
        probability: with which a sample's branch is dropped, at least 0 and below 1.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) the probability is out of its range.

    Source: Huang et al., "Deep networks with stochastic depth", arXiv:1603.09382.

    Example:
        >>> import torch
        >>> sorted(set(DropPath(0.5)(torch.ones(64, 1, 2, 2)).flatten().tolist()))
        [0.0, 2.0]
    """

    def __init__(self, probability: float = 0.0) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ArgumentError(f"probability must be at least 0 and below 1, got {probability!r}")
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) to the same shape."""
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        return x * (torch.rand((x.shape[0], *(1,) * (x.dim() - 1)), device=x.device) < keep).to(x.dtype).div(keep)

    def extra_repr(self) -> str:
        """The probability."""
        return str(self.probability)


def drop_path(argument: str, probability: float) -> nn.Module:
    """The module of a block's ``drop_path`` argument: none costs nothing."""
    if not isinstance(probability, (int, float)) or not 0 <= probability < 1:
        raise ArgumentError(f"{argument} must be at least 0 and below 1, got {probability!r}")
    return DropPath(probability) if probability else nn.Identity()
