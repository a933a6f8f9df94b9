"""What a module is, as far as a chain is concerned: a plain convolution, a batch norm, an activation, or nothing."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dwsep.accelerate import _layers
from dwsep.geometry import ConvGeometry
from dwsep.nn import DepthwiseConv2d

_ACTIVATIONS: dict[type, str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.GELU: "gelu",
}
# Known by name, so that nothing here imports timm. Each computes what torch's module of that name does.
_FOREIGN_ACTIVATIONS = {
    ("timm.layers.activations", "Swish"): "silu",
    ("timm.layers.activations", "HardSwish"): "hardswish",
    ("timm.layers.activations", "GELU"): "gelu",
}
_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    F.relu_: "relu",
    torch.relu_: "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.gelu: "gelu",
}
_METHODS = {"relu": "relu", "relu_": "relu"}
_DROPS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_CHANNEL_NORMS = {("timm.layers.norm", "LayerNorm2d"), ("torchvision.models.convnext", "LayerNorm2d")}
_FOREIGN_DROPS = {
    ("timm.layers.drop", "DropPath"),
    ("timm.layers.drop", "DropBlock2d"),
    ("torchvision.ops.stochastic_depth", "StochasticDepth"),
    ("torchvision.ops.drop_block", "DropBlock2d"),
    ("dwsep.nn._squeeze_excite", "DropPath"),
}
_GATES: dict[Any, str] = {
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    F.hardsigmoid: "hardsigmoid",
    "sigmoid": "sigmoid",
}
_FOREIGN_GATES = {
    ("timm.layers.activations", "Sigmoid"): "sigmoid",
    ("timm.layers.activations", "HardSigmoid"): "hardsigmoid",
}
# Behind a depthwise convolution and a permutation they are its 1x1 convolutions.
_FOREIGN_PERCEPTRONS = {("timm.layers.mlp", "Mlp"), ("timm.layers.mlp", "GlobalResponseNormMlp")}
# What Python makes of `x += y` and the like. fx reads the first as x + y, though whoever else has x sees it change.
IN_PLACE = {
    f"__i{name}__": getattr(operator, f"i{name}")
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
}
_IN_PLACE_NAMES = frozenset(function.__name__ for function in IN_PLACE.values())
PRODUCTS = (operator.mul, torch.mul, "mul")
# With more, a dense convolution is a matter of products alone, which torch does as well.
_MOST_DENSE_OPERANDS = 512
_LOOKS = (torch.mean, F.adaptive_avg_pool2d, "mean")


def foreign_name(module: nn.Module) -> tuple[str, str]:
    """Where a module's class comes from: its Python module and its name."""
    return type(module).__module__, type(module).__name__


def hooks_of(module: nn.Module) -> tuple[dict, ...]:
    """The dictionaries which hold a module's hooks: all empty where nothing has to see it run."""
    return (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)


def is_replaced(module: nn.Module) -> bool:
    """Whether hooks have to see a module run, or somebody else put a forward of his own in its instance."""
    from dwsep.accelerate._forward import is_ours

    return any(hooks_of(module)) or ("forward" in module.__dict__ and not is_ours(module.__dict__["forward"]))


def _pads_as_tensorflow(module: nn.Module) -> bool:
    return foreign_name(module) == ("timm.layers.conv2d_same", "Conv2dSame")


def is_conv(module: nn.Module) -> bool:
    """Whether a module is a plain 2d convolution: torch's own arithmetic with parameters where torch keeps them."""
    if _layers.is_depthwise(module):
        return True
    if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros":
        return False
    plain = type(module).forward is nn.Conv2d.forward and type(module)._conv_forward is nn.Conv2d._conv_forward
    if not (plain or _pads_as_tensorflow(module)):
        return False
    return "weight" in module._parameters and "bias" in module._parameters


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution works on every channel by itself."""
    return conv.groups == conv.in_channels and conv.groups > 1


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution is a matrix product at every pixel."""
    if conv.groups != 1:
        return False
    taps_and_steps = (*conv.kernel_size, *conv.stride)
    unpadded = conv.padding in ("valid", "same") or (not isinstance(conv.padding, str) and not any(conv.padding))
    return set(taps_and_steps) == {1} and unpadded


def has_stage(conv: nn.Conv2d) -> bool:
    """Whether a convolution trains as a stage: a pointwise one, a depthwise one with an output for each channel, or a
    dense one with so few operands a pixel that a stage, which saves passes, gathers them.
    """
    if is_pointwise(conv):
        return True
    if is_depthwise(conv):
        return conv.out_channels == conv.in_channels
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    return conv.groups == 1 and (taps == 1 or conv.in_channels * taps <= _MOST_DENSE_OPERANDS)


def geometry_of(conv: nn.Conv2d) -> ConvGeometry:
    """A convolution's shape arithmetic."""
    if isinstance(conv, DepthwiseConv2d):
        return conv.geometry
    padding: Any = "same_tf" if _pads_as_tensorflow(conv) else conv.padding
    return ConvGeometry.make(2, conv.kernel_size, conv.stride, padding, conv.dilation)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm, possibly one of timm's with an activation inside."""
    if not isinstance(module, nn.BatchNorm2d):
        return False
    if not {"weight", "bias"} <= module._parameters.keys():
        return False
    if not {"running_mean", "running_var", "num_batches_tracked"} <= module._buffers.keys():
        return False
    if type(module).forward is _BatchNorm.forward:
        return True
    return has_inner_activation(module) and type(module.drop) is nn.Identity and not any(hooks_of(module.drop))


def has_inner_activation(module: nn.Module) -> bool:
    """Whether a norm is timm's, which applies an activation of its own."""
    return foreign_name(module) == ("timm.layers.norm_act", "BatchNormAct2d")


def activation_of(module: nn.Module) -> str | None:
    """The name kernels know an activation module by; ``None`` for a module that is none or is unknown."""
    if type(module) is nn.GELU and module.approximate != "none":
        return None
    return _ACTIVATIONS.get(type(module)) or _FOREIGN_ACTIVATIONS.get(foreign_name(module))


def activation_of_call(target: Any, kwargs: dict[str, Any]) -> str | None:
    """The same for a function, or the name of a tensor's method, called with ``kwargs``."""
    if set(kwargs) - {"inplace"}:
        return None
    try:
        return _METHODS.get(target) if isinstance(target, str) else _FUNCTIONS.get(target)
    except TypeError:  # not hashable
        return None


def passes_through(module: nn.Module) -> bool:
    """Whether a module returns its input as it is in its present mode."""
    if type(module) is nn.Identity:
        return True
    if type(module) in _DROPS:
        return not module.training or module.p == 0  # type: ignore[attr-defined]
    return foreign_name(module) in _FOREIGN_DROPS and not module.training


def drops(target: Any) -> bool:
    """Whether a module sets some of its input to zero at random, and scales the rest."""
    return isinstance(target, nn.Module) and (type(target) in _DROPS or foreign_name(target) in _FOREIGN_DROPS)


def undropped(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node | None:
    """What a dropout which is switched off returns, where a call is one."""
    if target is not F.dropout:
        return None
    named = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | kwargs
    off = named.get("training", True) is False or named.get("p", 0.5) == 0
    return named["input"] if off and isinstance(named["input"], fx.Node) else None


def writes(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node may write into what it takes."""
    if module is not None:
        return any(getattr(inner, "inplace", False) for inner in module.modules())
    if node.kwargs.get("inplace"):
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator":
        return name in _IN_PLACE_NAMES or name == "setitem"
    return name.endswith("_") and not name.endswith("__")


def looks(target: Any) -> bool:
    """Whether a module, function or method computes means of its input, and nothing else with it."""
    if isinstance(target, nn.Module):
        return type(target) is nn.AdaptiveAvgPool2d
    return any(target is known or target == known for known in _LOOKS)


def pools(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Whether a call is the mean of its (N, C, H, W) input over H and W: the axes "kept" as ones, or "dropped"."""
    if isinstance(target, nn.AdaptiveAvgPool2d):
        target, args, kwargs = F.adaptive_avg_pool2d, (*args, target.output_size), {}
    if target is F.adaptive_avg_pool2d:
        size = args[1] if len(args) == 2 else kwargs.get("output_size")
        return "kept" if size == 1 or (isinstance(size, (list, tuple)) and list(size) == [1, 1]) else None
    if not looks(target) or not set(kwargs) <= {"dim", "keepdim"} or len(args) > 3:
        return None
    named = dict(zip(("dim", "keepdim"), args[1:], strict=False)) | kwargs
    axes, keeps = named.get("dim"), named.get("keepdim", False)
    if not isinstance(axes, (list, tuple)) or not isinstance(keeps, bool):
        return None
    if len(axes) != 2 or not all(isinstance(axis, int) for axis in axes) or {axis % 4 for axis in axes} != {2, 3}:
        return None
    return "kept" if keeps else "dropped"


def gate_of(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Whether a call is the sigmoid or hard sigmoid of its only argument, into a new tensor."""
    if len(args) != 1 or any(kwargs.values()) or getattr(target, "inplace", False):
        return None
    if isinstance(target, nn.Module):
        return _GATES.get(type(target)) or _FOREIGN_GATES.get(foreign_name(target))
    return next((name for known, name in _GATES.items() if target is known or target == known), None)


def flattens(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call joins all axes of its argument behind the first."""
    if isinstance(target, nn.Module):
        return type(target) is nn.Flatten and (target.start_dim, target.end_dim) == (1, -1) and len(args) == 1
    if target is not torch.flatten and target != "flatten":
        return False
    named = dict(zip(("start_dim", "end_dim"), args[1:], strict=False)) | kwargs
    return named.get("start_dim", 0) == 1 and named.get("end_dim", -1) == -1


def cuts(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> slice | None:
    """The consecutive channels of its argument which a call returns, where it returns those of all pixels."""
    if target is not operator.getitem or kwargs or len(args) != 2 or not isinstance(args[1], tuple):
        return None
    everything = slice(None)
    first, channels, *others = (*args[1], everything, everything)[: max(2, len(args[1]))]
    if first != everything or any(other != everything for other in others) or len(others) > 2:
        return None
    sides = (channels.start, channels.stop) if isinstance(channels, slice) and channels.step in (None, 1) else ("",)
    return channels if all(side is None or (type(side) is int and side >= 0) for side in sides) else None


def is_linear(module: nn.Module) -> bool:
    """Whether a module is torch's own product with a weight, its parameters where torch keeps them."""
    known = type(module) is nn.Linear or foreign_name(module) == ("timm.layers.linear", "Linear")
    return known and {"weight", "bias"} <= module._parameters.keys()


def is_layer_norm(module: nn.Module) -> bool:
    """Whether a module is a layer norm over the channels of images (N, C, H, W), as timm and torchvision have it."""
    return foreign_name(module) in _CHANNEL_NORMS and _normalises_one_axis(module)


def is_last_norm(module: nn.Module) -> bool:
    """Whether a module is a layer norm over the last axis of its input: torch's own or timm's."""
    known = type(module) is nn.LayerNorm or foreign_name(module) == ("timm.layers.norm", "LayerNorm")
    return known and _normalises_one_axis(module)


def _normalises_one_axis(module: nn.Module) -> bool:
    """Whether a layer norm is one of a single axis, its parameters where torch keeps them, with torch's arithmetic."""
    if not isinstance(module, nn.LayerNorm) or not {"weight", "bias"} <= module._parameters.keys():
        return False
    return len(module.normalized_shape) == 1 and not getattr(module, "_fast_norm", False)


def is_transparent(module: nn.Module) -> bool:
    """Whether a module only hands its input from one of its parts to the next."""
    return type(module) is nn.Sequential or _is_global_pool(module)


def _is_global_pool(module: nn.Module) -> bool:
    return foreign_name(module) == ("timm.layers.adaptive_avgmax_pool", "SelectAdaptivePool2d")


def has_work(module: nn.Module) -> bool:
    """Whether a module holds anything that chains are made of, or pools and classifies, so that looking inside is worth
    it.
    """
    inside = list(module.modules())
    if any(isinstance(inner, (_BatchNorm, nn.Conv2d)) or _layers.is_depthwise(inner) for inner in inside):
        return True
    if any(foreign_name(inner) in _FOREIGN_PERCEPTRONS for inner in inside):
        return True
    pools = any(type(inner) is nn.AdaptiveAvgPool2d or _is_global_pool(inner) for inner in inside)
    return pools and any(map(is_linear, inside))
