"""Layers which learn their number of input channels from the first input, or from the weights they load."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from dwsep.errors import ArgumentError
from dwsep.nn import _depthwise, _separable, _transposed
from dwsep.nn import _separable_transposed as _together

_FACTOR_PARAMETERS = ("weight", "bias")


class _Bare(nn.Module):
    """Stands before the layer's class, whose constructor needs ``in_channels``, in a lazy layer's bases."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.Module.__init__(self)


class _Deferred(LazyModuleMixin, nn.Module):
    """Holds the constructor's arguments until ``in_channels`` is known."""

    cls_to_become: type[nn.Module]
    ndim: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()  # type: ignore[misc]
        self._arguments = (args, kwargs)
        self.in_channels = 0
        # A layer of some number of channels checks the arguments now and lends its factors, whose geometry is known.
        prototype = self._prototype(args, kwargs)
        self.__dict__.update({k: v for k, v in vars(prototype).items() if k not in vars(self)})
        placeholder: dict[str, Any] = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        for factor in self._factors(prototype):
            for name in _FACTOR_PARAMETERS:
                if factor._parameters.get(name) is not None:
                    setattr(factor, name, UninitializedParameter(**placeholder))
        self._take(prototype)
        self._state_hook = self.register_load_state_dict_pre_hook(_materialise_from_state)

    def _prototype(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
        raise NotImplementedError

    def _factors(self, layer: nn.Module) -> list[nn.Module]:
        raise NotImplementedError

    def _take(self, prototype: nn.Module) -> None:
        """Register what the layer has while ``in_channels`` is unknown."""
        raise NotImplementedError

    def _channels_in_state(self, state: dict[str, Tensor], prefix: str) -> int | None:
        raise NotImplementedError

    def has_uninitialized_params(self) -> bool:
        """Whether ``in_channels`` is still unknown."""
        return self.in_channels == 0

    def initialize_parameters(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """Become a layer for the channels of ``x``: (N, C, *spatial) or (C, *spatial)."""
        self._state_hook.remove()
        del self._state_hook
        if not self.has_uninitialized_params():
            return
        if x.dim() not in (self.ndim + 1, self.ndim + 2):
            raise ArgumentError(
                f"x must have {self.ndim + 2} dimensions (N, C, {self.ndim} spatial), or {self.ndim + 1} unbatched, "
                f"got {x.dim()} with shape {tuple(x.shape)}"
            )
        self._materialise(x.shape[-self.ndim - 1])

    def _materialise(self, in_channels: int) -> None:
        """Take the parameters and submodules of a new layer; the parameter objects handed out before stay the same."""
        args, kwargs = self._arguments
        held = [factor._parameters for factor in self._factors(self)]
        known: Any = next((p for parameters in held for p in parameters.values() if p is not None), None)
        # .to() has moved the placeholders, if anything.
        place = {"device": known.device, "dtype": known.dtype}
        layer = self.cls_to_become(in_channels, *args, **{**kwargs, **place})
        for parameters, factor in zip(held, self._factors(layer), strict=True):
            for name in _FACTOR_PARAMETERS:
                old, new = parameters.get(name), factor._parameters[name]
                if isinstance(old, UninitializedParameter) and new is not None:
                    old.materialize(new.shape, **place)
                    with torch.no_grad():
                        old.copy_(new)
                    factor._parameters[name] = old
        layer.train(self.training)
        hooks = {name: value for name, value in vars(self).items() if "hook" in name}
        self.__dict__.clear()
        self.__dict__.update({**vars(layer), **hooks})


def _materialise_from_state(layer: Any, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    if layer.in_channels == 0:
        channels = layer._channels_in_state(state, prefix)
        if channels is not None:
            layer._materialise(channels)


class _LazyDepthwise(_Deferred):
    def _prototype(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
        return self.cls_to_become(1, *args, **{**kwargs, "device": "meta"})

    def _factors(self, layer: nn.Module) -> list[nn.Module]:
        return [layer]

    def _take(self, prototype: nn.Module) -> None:
        self._parameters.update(prototype._parameters)
        self._modules.update(prototype._modules)

    def _channels_in_state(self, state: dict[str, Tensor], prefix: str) -> int | None:
        weight = state.get(f"{prefix}weight")
        return None if weight is None else weight.shape[0] // self.depth_multiplier  # type: ignore[operator]


class _LazyTransposed(_LazyDepthwise):
    def _channels_in_state(self, state: dict[str, Tensor], prefix: str) -> int | None:
        weight = state.get(f"{prefix}weight")
        return None if weight is None else weight.shape[0]  # a transposed kernel has its inputs first


class _LazySeparable(_Deferred):
    def _prototype(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
        out_channels: Any = args[0] if args else kwargs.get("out_channels", 1)
        multiplier = kwargs.get("depth_multiplier", 1)
        guess = out_channels
        if kwargs.get("residual") == "depthwise" and kwargs.get("order", "depthwise_first") == "depthwise_first":
            guess = max(1, out_channels // multiplier)
        # A norm may refuse the guessed channels, and one which is a module already must not move.
        norms = {name: None for name in ("norm", "inner_norm") if not isinstance(kwargs.get(name), str)}
        return self.cls_to_become(guess, *args, **{**kwargs, **norms, "device": "meta"})

    def _factors(self, layer: nn.Module) -> list[nn.Module]:
        return [layer.depthwise, layer.pointwise]  # type: ignore[list-item]

    def _take(self, prototype: nn.Module) -> None:
        for name in ("depthwise", "pointwise"):
            self.add_module(name, copy.copy(prototype.get_submodule(name)))

    def _channels_in_state(self, state: dict[str, Tensor], prefix: str) -> int | None:
        weight = state.get(f"{prefix}pointwise.weight")
        if weight is None:
            return None
        _, kwargs = self._arguments
        multiplier = kwargs.get("depth_multiplier", 1)
        first = kwargs.get("order", "depthwise_first") == "depthwise_first"
        return weight.shape[1] // multiplier if first else weight.shape[1]


class LazyDepthwiseConv1d(_LazyDepthwise, _Bare, _depthwise.DepthwiseConv1d):  # type: ignore[misc]
    """:class:`DepthwiseConv1d` whose ``in_channels`` comes from the first input; see :class:`LazyDepthwiseConv2d`.

    Example:
        >>> import torch
        >>> LazyDepthwiseConv1d(3, padding="causal")(torch.ones(2, 5, 9)).shape
        torch.Size([2, 5, 9])
    """

    cls_to_become = _depthwise.DepthwiseConv1d


class LazyDepthwiseConv2d(_LazyDepthwise, _Bare, _depthwise.DepthwiseConv2d):  # type: ignore[misc]
    """:class:`DepthwiseConv2d` whose ``in_channels`` comes from the first input, or from the weights it loads.

    Takes the other arguments of :class:`DepthwiseConv2d`, and becomes one. As with torch's lazy modules, move it to
    its device and dtype first, run it once, then make the optimizer.

    Raises:
        ArgumentError: what :class:`DepthwiseConv2d` refuses whatever the channels, from the constructor.

    Example:
        >>> import torch
        >>> layer = LazyDepthwiseConv2d(3, padding="same")
        >>> layer(torch.ones(1, 5, 8, 8)).shape, type(layer).__name__
        (torch.Size([1, 5, 8, 8]), 'DepthwiseConv2d')
    """

    cls_to_become = _depthwise.DepthwiseConv2d


class LazyDepthwiseConv3d(_LazyDepthwise, _Bare, _depthwise.DepthwiseConv3d):  # type: ignore[misc]
    """:class:`DepthwiseConv3d` whose ``in_channels`` comes from the first input; see :class:`LazyDepthwiseConv2d`.

    Example:
        >>> import torch
        >>> LazyDepthwiseConv3d(1)(torch.ones(2, 5, 3, 3, 3)).shape
        torch.Size([2, 5, 3, 3, 3])
    """

    cls_to_become = _depthwise.DepthwiseConv3d


class LazyDepthwiseSeparableConv1d(_LazySeparable, _Bare, _separable.DepthwiseSeparableConv1d):  # type: ignore[misc]
    """:class:`DepthwiseSeparableConv1d` whose ``in_channels`` comes from the first input.

    See :class:`LazyDepthwiseSeparableConv2d`.

    Example:
        >>> import torch
        >>> LazyDepthwiseSeparableConv1d(7, 3, padding="causal")(torch.ones(2, 5, 9)).shape
        torch.Size([2, 7, 9])
    """

    cls_to_become = _separable.DepthwiseSeparableConv1d


class LazyDepthwiseSeparableConv2d(_LazySeparable, _Bare, _separable.DepthwiseSeparableConv2d):  # type: ignore[misc]
    """:class:`DepthwiseSeparableConv2d` whose ``in_channels`` comes from the first input, or the weights it loads.

    Takes the other arguments of :class:`DepthwiseSeparableConv2d`, and becomes one. Norms, whose size may depend on
    the channels, appear then.

    Raises:
        ArgumentError: what :class:`DepthwiseSeparableConv2d` refuses whatever the channels, from the constructor;
            what depends on them, at the first input.

    Example:
        >>> import torch
        >>> layer = LazyDepthwiseSeparableConv2d(16, 3, stride=2, norm="batch", activation="relu")
        >>> layer(torch.ones(1, 5, 8, 8)).shape
        torch.Size([1, 16, 4, 4])
        >>> type(layer).__name__, layer.in_channels
        ('DepthwiseSeparableConv2d', 5)
    """

    cls_to_become = _separable.DepthwiseSeparableConv2d


class LazyDepthwiseSeparableConv3d(_LazySeparable, _Bare, _separable.DepthwiseSeparableConv3d):  # type: ignore[misc]
    """:class:`DepthwiseSeparableConv3d` whose ``in_channels`` comes from the first input.

    See :class:`LazyDepthwiseSeparableConv2d`.

    Example:
        >>> import torch
        >>> LazyDepthwiseSeparableConv3d(7)(torch.ones(2, 5, 3, 3, 3)).shape
        torch.Size([2, 7, 3, 3, 3])
    """

    cls_to_become = _separable.DepthwiseSeparableConv3d


class LazyDepthwiseConvTranspose1d(_LazyTransposed, _Bare, _transposed.DepthwiseConvTranspose1d):  # type: ignore[misc]
    """:class:`DepthwiseConvTranspose1d` whose ``in_channels`` comes from the first input.

    See :class:`LazyDepthwiseConv2d`.

    Example:
        >>> import torch
        >>> LazyDepthwiseConvTranspose1d(2, stride=2)(torch.ones(2, 5, 9)).shape
        torch.Size([2, 5, 18])
    """

    cls_to_become = _transposed.DepthwiseConvTranspose1d


class LazyDepthwiseConvTranspose2d(_LazyTransposed, _Bare, _transposed.DepthwiseConvTranspose2d):  # type: ignore[misc]
    """:class:`DepthwiseConvTranspose2d` whose ``in_channels`` comes from the first input.

    See :class:`LazyDepthwiseConv2d`.

    Example:
        >>> import torch
        >>> LazyDepthwiseConvTranspose2d(2, stride=2)(torch.ones(2, 5, 8, 8)).shape
        torch.Size([2, 5, 16, 16])
    """

    cls_to_become = _transposed.DepthwiseConvTranspose2d


class LazyDepthwiseConvTranspose3d(_LazyTransposed, _Bare, _transposed.DepthwiseConvTranspose3d):  # type: ignore[misc]
    """:class:`DepthwiseConvTranspose3d` whose ``in_channels`` comes from the first input.

    See :class:`LazyDepthwiseConv2d`.

    Example:
        >>> import torch
        >>> LazyDepthwiseConvTranspose3d(2, stride=2)(torch.ones(2, 5, 3, 3, 3)).shape
        torch.Size([2, 5, 6, 6, 6])
    """

    cls_to_become = _transposed.DepthwiseConvTranspose3d


class LazyDepthwiseSeparableConvTranspose1d(_LazySeparable, _Bare, _together.DepthwiseSeparableConvTranspose1d):  # type: ignore[misc]
    """:class:`DepthwiseSeparableConvTranspose1d` whose ``in_channels`` comes from the first input.

    See :class:`LazyDepthwiseSeparableConv2d`.

    Example:
        >>> import torch
        >>> LazyDepthwiseSeparableConvTranspose1d(7, 2, 2)(torch.ones(2, 5, 9)).shape
        torch.Size([2, 7, 18])
    """

    cls_to_become = _together.DepthwiseSeparableConvTranspose1d


class LazyDepthwiseSeparableConvTranspose2d(_LazySeparable, _Bare, _together.DepthwiseSeparableConvTranspose2d):  # type: ignore[misc]
    """:class:`DepthwiseSeparableConvTranspose2d` whose ``in_channels`` comes from the first input.

    See :class:`LazyDepthwiseSeparableConv2d`.

    Example:
        >>> import torch
        >>> LazyDepthwiseSeparableConvTranspose2d(7, 2, 2)(torch.ones(2, 5, 8, 8)).shape
        torch.Size([2, 7, 16, 16])
    """

    cls_to_become = _together.DepthwiseSeparableConvTranspose2d


class LazyDepthwiseSeparableConvTranspose3d(_LazySeparable, _Bare, _together.DepthwiseSeparableConvTranspose3d):  # type: ignore[misc]
    """:class:`DepthwiseSeparableConvTranspose3d` whose ``in_channels`` comes from the first input.

    See :class:`LazyDepthwiseSeparableConv2d`.

    Example:
        >>> import torch
        >>> LazyDepthwiseSeparableConvTranspose3d(7, 2, 2)(torch.ones(2, 5, 3, 3, 3)).shape
        torch.Size([2, 7, 6, 6, 6])
    """

    cls_to_become = _together.DepthwiseSeparableConvTranspose3d
