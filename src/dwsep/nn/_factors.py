"""Which convolutions of a network are depthwise and which pointwise, and what follows: decay and initialisers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from dwsep.errors import ArgumentError, unknown_name
from dwsep.nn._depthwise import _DepthwiseConv
from dwsep.nn._transposed import _DepthwiseConvTranspose

Initialiser = str | Callable[[Tensor], Any]
FACTORS = ("depthwise", "pointwise")


def factor_of(module: nn.Module) -> Literal["depthwise", "pointwise"] | None:
    """Which factor of a separable convolution a module is; ``None`` for everything else, dense convolutions too.

    A convolution with one channel is no depthwise one: it is as dense as it can be.
    """
    if isinstance(module, (_DepthwiseConv, _DepthwiseConvTranspose)):
        return "depthwise"
    if isinstance(module, _ConvNd):
        if module.groups == module.in_channels and module.groups > 1:
            return "depthwise"
        if set(module.kernel_size) == {1} and module.groups == 1:
            return "pointwise"
    return None


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A module's parameters with the names they would have without parametrisations, such as weight norm's."""
    for name, parameter in module.named_parameters(recurse=False):
        yield name, parameter
    if parametrize.is_parametrized(module):
        lists: Any = module.parametrizations
        for name, parametrisation in lists.items():
            for parameter in parametrisation.parameters():
                yield name, parameter


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    depthwise: float = 0.0,
    pointwise: float | None = None,
    norm_and_bias: float = 0.0,
) -> list[dict[str, Any]]:
    """Split a model's parameters into groups for an optimizer, each with the weight decay of its kind.

    A depthwise kernel has a handful of weights per channel, and decay pulls whole channels to zero: DeepLab and
    MobileNet train without it there. Works on layers of this package and of torch, behind weight norm and spectral
    norm, too. A parameter used in several places goes by the first.

    Args:
        model: any module.
        weight_decay: of all weights that no other argument covers, such as dense convolutions and linear layers.
        depthwise: of depthwise kernels.
        pointwise: of 1x1 convolutions; ``None`` for ``weight_decay``.
        norm_and_bias: of biases, and of every parameter with less than two dimensions.

    Returns:
        Groups with keys ``"params"``, ``"weight_decay"`` and ``"name"`` (``"depthwise"``, ``"pointwise"``,
        ``"norm_and_bias"``, ``"other"``), those without parameters left out. Every parameter that wants a gradient is
        in exactly one.

    Raises:
        ArgumentError: a decay is negative or not finite.
        TypeError: ``model`` is no module, or a decay no number.

    Cost: one walk over the modules.

    Source: Chen et al., "Encoder-decoder with atrous separable convolution", arXiv:1802.02611; its published training
    regularises no depthwise weights. Howard et al., "MobileNets", arXiv:1704.04861, section 3.2.

    Example:
        >>> import torch
        >>> layer = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=4), torch.nn.Conv2d(4, 8, 1))
        >>> groups = parameter_groups(layer, weight_decay=4e-5)
        >>> [(group["name"], group["weight_decay"], len(group["params"])) for group in groups]
        [('depthwise', 0.0, 1), ('pointwise', 4e-05, 1), ('norm_and_bias', 0.0, 2)]
        >>> optimizer = torch.optim.SGD(groups, lr=0.1)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    decays = {
        "depthwise": _decay("depthwise", depthwise),
        "pointwise": _decay("weight_decay", weight_decay) if pointwise is None else _decay("pointwise", pointwise),
        "norm_and_bias": _decay("norm_and_bias", norm_and_bias),
        "other": _decay("weight_decay", weight_decay),
    }
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in decays}
    seen: set[int] = set()
    for module in _owners(model):
        factor = factor_of(module)
        for name, parameter in _own_parameters(module):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            if name == "weight" and factor is not None:
                groups[factor].append(parameter)
            elif name == "bias" or parameter.dim() < 2:
                groups["norm_and_bias"].append(parameter)
            else:
                groups["other"].append(parameter)
    return [
        {"params": parameters, "weight_decay": decays[name], "name": name}
        for name, parameters in groups.items()
        if parameters
    ]


def _owners(model: nn.Module) -> Iterator[nn.Module]:
    """Modules by which parameters are told: those inside a parametrisation belong to the module that it is on."""
    inside = {
        id(inner)
        for module in model.modules()
        if parametrize.is_parametrized(module)
        for inner in module.parametrizations.modules()  # type: ignore[union-attr]
    }
    return (module for module in model.modules() if id(module) not in inside)


def _decay(argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a number, got {value!r} of type {type(value).__name__}")
    if not (math.isfinite(value) and value >= 0):
        raise ArgumentError(f"{argument} must be finite and at least 0, got {value}")
    return float(value)


def _identity_(weight: Tensor) -> Tensor:
    """One at the middle tap (the earlier of two), zero elsewhere: a depthwise convolution that changes nothing."""
    weight.zero_()
    middle = tuple((size - 1) // 2 for size in weight.shape[2:])
    weight[(slice(None), slice(None), *middle)] = 1
    return weight


def _fan_in_uniform_(weight: Tensor) -> Tensor:
    bound = 1 / math.sqrt(weight[0].numel())
    return weight.uniform_(-bound, bound)


INITIALISERS: dict[str, dict[str, Callable[[Tensor], Any]]] = {
    "uniform": {"depthwise": _fan_in_uniform_, "pointwise": _fan_in_uniform_},
    # A depthwise output sums over one channel's taps alone, so its fan-out is not out_channels * taps.
    "he": {
        "depthwise": lambda w: w.normal_(0, math.sqrt(2 / w[0].numel())),
        "pointwise": lambda w: w.normal_(0, math.sqrt(2 / w.shape[0])),
    },
    "xavier": {
        "depthwise": lambda w: nn.init.xavier_uniform_(w.view(w.shape[0], -1)[:, None].transpose(0, 1)),
        "pointwise": nn.init.xavier_uniform_,
    },
    "deeplab": {
        "depthwise": lambda w: nn.init.trunc_normal_(w, 0, 0.33, -0.66, 0.66),
        "pointwise": lambda w: nn.init.trunc_normal_(w, 0, 0.06, -0.12, 0.12),
    },
    "identity": {"depthwise": _identity_, "pointwise": nn.init.dirac_},
    "orthogonal": {
        "depthwise": lambda w: nn.init.orthogonal_(w.view(w.shape[0], -1)),
        "pointwise": nn.init.orthogonal_,
    },
}


@torch.no_grad()
def init_factors_(
    model: nn.Module,
    *,
    depthwise: Initialiser | None = None,
    pointwise: Initialiser | None = None,
    bias: float | None = None,
) -> int:
    """Draw the weights of a model's separable factors anew, each by a rule of its own, in place.

    Args:
        model: a layer or a network; convolutions of torch are recognised as well.
        depthwise: rule for depthwise kernels, (C * M, 1, *taps): a name or a function that fills a tensor in place.
            ``"uniform"`` within 1 / sqrt(taps), ``"he"`` normal with variance 2 / taps, ``"xavier"`` uniform,
            ``"deeplab"`` truncated normal of deviation 0.33, ``"identity"``, ``"orthogonal"``; ``None`` keeps them.
        pointwise: rule for 1x1 kernels, (K, C, 1, ...): the same names, where ``"he"`` goes by the fan-out K and
            ``"deeplab"`` has deviation 0.06.
        bias: what both factors' biases are set to; ``None`` keeps them.

    Returns:
        How many convolutions were given new weights.

    Raises:
        ArgumentError: an unknown name.
        TypeError: a rule that is neither a name nor a function; ``model`` is no module.

    Source: He et al., arXiv:1502.01852; Glorot and Bengio, AISTATS 2010; Chen et al., arXiv:1802.02611 (DeepLab).

    Example:
        >>> import torch
        >>> layer = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1, groups=4), torch.nn.Conv2d(4, 4, 1))
        >>> init_factors_(layer, depthwise="identity", pointwise="identity", bias=0.0)
        2
        >>> x = torch.rand(1, 4, 5, 5)
        >>> torch.equal(layer(x), x)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    rules = {name: _rule(name, rule) for name, rule in (("depthwise", depthwise), ("pointwise", pointwise))}
    count = 0
    for module in model.modules():
        factor = factor_of(module)
        if factor is None:
            continue
        rule = rules[factor]
        if rule is not None:
            weight: Any = module.weight
            if factor == "depthwise" and isinstance(module, (_ConvTransposeNd, _DepthwiseConvTranspose)):
                weight = weight.view(module.out_channels, 1, *weight.shape[2:])
            if parametrize.is_parametrized(module, "weight"):
                made = weight.clone()
                rule(made)
                module.weight = made.view_as(module.weight)  # through the parametrisation's right inverse
            else:
                rule(weight)
            count += 1
        if bias is not None and module.bias is not None:
            module.bias.fill_(bias)  # type: ignore[operator]
    return count


def _rule(factor: str, rule: Initialiser | None) -> Callable[[Tensor], Any] | None:
    if rule is None:
        return None
    if isinstance(rule, str):
        if rule not in INITIALISERS:
            raise unknown_name(factor, rule, tuple(INITIALISERS))
        return INITIALISERS[rule][factor]
    if not callable(rule):
        raise TypeError(f"{factor} must be None, a name or a function of a tensor, got {rule!r}")
    return rule
