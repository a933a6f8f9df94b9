"""``accelerate_`` and ``revert_``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dwsep.accelerate import _layers, _modules, _tracing
from dwsep.accelerate._forward import AcceleratedForward, DepthwiseForward, Reading, is_ours
from dwsep.accelerate._program import Call, Stage
from dwsep.accelerate._report import AccelerationReport, Line

Filter = Callable[[str, nn.Module], bool]


def accelerate_(model: nn.Module, *, filter_fn: Filter | None = None, frozen: bool = False) -> AccelerationReport:
    """Make a network of depthwise separable convolutions faster, in place, its numbers unchanged.

    Chains of convolution, batch norm, activation and sum run fused from the next call on. Parameters, buffers, names,
    ``state_dict`` keys, hooks, device, dtype, mode and shared modules stay; optimizers built before stay valid; copies
    and pickles of the model are accelerated, too. Inference runs fused in bfloat16 as well, of the parameters or of
    autocast: float32 between the steps, rounded where pointwise convolutions multiply and at the end, and so does
    training under autocast. Parallel branches without an activation (MobileOne, RepViT) are one convolution at
    inference, their weights stay apart. What cannot run fused (another device or dtype, parameters of bfloat16 in
    training, ``torch.func``, a compiler, hooks) runs as before. Weights may change at any time, unless ``frozen``.

    On a GPU depthwise convolutions train on kernels of their own where those are the faster; inference runs as before.
    Chains train fused there only if the environment variable ``DWSEP_CUDA_FUSED`` is 1: those kernels are tested, and
    not timed yet.

    Args:
        model: any module; changed in place.
        filter_fn: called with the name and the module of everything inside; where it returns ``False``, that module
            and all within are left alone.
        frozen: Take weights, modes and hooks for constant from the first inference on: in evaluation, without
            gradients, a call then no longer asks whether they have changed, which takes 0.05 to 0.2 ms with a network
            of a few hundred tensors. What is changed all the same is seen after another ``accelerate_`` only. Training,
            and every call with gradients enabled, ask as ever.

    Returns:
        What was fused, and what was left alone and why.

    Raises:
        TypeError: ``model`` is no module, ``filter_fn`` cannot be called, or ``frozen`` is no bool.

    Cost: reads the forward of every part once; no arithmetic, no memory until the first inference.

    Example:
        >>> import torch, dwsep
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        ...     torch.nn.Conv2d(8, 16, 1), torch.nn.BatchNorm2d(16)).eval()
        >>> print(dwsep.accelerate_(model))
        2 chains run fused
        module  what                             status  reason
        0       3x3 depthwise, batch norm, relu  fused
        3       1x1, batch norm                  fused
        >>> with torch.no_grad():
        ...     model(torch.ones(1, 8, 4, 4)).shape
        torch.Size([1, 16, 4, 4])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn must be a function of a name and a module, got {filter_fn!r}")
    if not isinstance(frozen, bool):
        raise TypeError(f"frozen must be True or False, got {frozen!r}")
    revert_(model)
    names = {id(module): name for name, module in model.named_modules()}
    excluded = [m for n, m in model.named_modules() if filter_fn is not None and not filter_fn(n, m)]
    lines = [Line(names[id(m)], type(m).__name__, "left alone", "filter_fn returned False") for m in excluded]
    _install(model, names, excluded, frozen, lines, set())
    fused = sum(line.status == "fused" for line in lines)
    if not fused:
        why = "no chain could be read" if _has_depthwise(model) else "the model has no depthwise torch.nn.Conv2d"
        summary = f"nothing to gain, left alone: {why}"
        return AccelerationReport(tuple(lines), summary)
    return AccelerationReport(tuple(lines), f"{fused} chain{'s' if fused > 1 else ''} run{'s' * (fused == 1)} fused")


def revert_(model: nn.Module) -> None:
    """Undo :func:`accelerate_`: the model is then exactly as it was.

    Args:
        model: any module; changed in place. One that was never accelerated stays as it is.

    Raises:
        TypeError: ``model`` is no module.

    Cost: none.

    Example:
        >>> import torch, dwsep
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=4), torch.nn.BatchNorm2d(4))
        >>> _ = dwsep.accelerate_(model)
        >>> dwsep.revert_(model)
        >>> "forward" in vars(model)
        False
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    for module in model.modules():
        if is_ours(module.__dict__.get("forward")):
            del module.__dict__["forward"]


def _install(
    module: nn.Module,
    names: dict[int, str],
    excluded: list[nn.Module],
    frozen: bool,
    lines: list[Line],
    covered: set[int],
) -> None:
    """Accelerate a module, and every one inside for the calls that reach it without its parents' programs.

    ``covered`` holds what the programs found so far run themselves, so that the report names nothing twice.
    """
    if any(module is other for other in excluded) or not _has_depthwise(module):
        return
    if is_ours(module.__dict__.get("forward")):
        return  # a shared module, met before
    kind, name = type(module).__name__, names[id(module)]
    if "forward" in module.__dict__ or isinstance(module, torch.jit.ScriptModule):
        if id(module) not in covered:
            lines.append(Line(name, kind, "left alone", "its forward was replaced or compiled"))
        return
    if _layers.is_layer(module) and not _layers.is_chain(module):
        return  # chooses its kernels itself
    if isinstance(module, nn.Conv2d):
        if _modules.is_conv(module) and module.padding_mode == "zeros":
            module.__dict__["forward"] = DepthwiseForward(module)
            if id(module) not in covered:
                lines.append(Line(name, describe(Stage(name, 0, conv=module)), "fused", "by itself, where it pays"))
        elif id(module) not in covered:
            lines.append(Line(name, kind, "left alone", "its convolution is not torch's plain one"))
        return
    if type(module).forward is not nn.Module.forward:
        forward = AcceleratedForward(module, excluded, frozen=frozen)
        if id(module) in covered:
            module.__dict__["forward"] = forward
        else:
            try:
                reading = forward.read()
            except _tracing.CannotTrace as error:
                lines.append(Line(name, kind, "left alone", f"itself, not its parts: {error}"))
            else:
                if reading.infers:
                    module.__dict__["forward"] = forward
                    lines.extend(_lines(reading, names))
                    covered |= {id(part) for part in (*reading.program.inside, *reading.program.parts)}
    for child in module.children():
        _install(child, names, excluded, frozen, lines, covered)


def _has_depthwise(module: nn.Module) -> bool:
    return any(
        _layers.is_layer(inner) or (isinstance(inner, nn.Conv2d) and _modules.is_depthwise(inner))
        for inner in module.modules()
    )


def _lines(reading: Reading, names: dict[int, str]) -> list[Line]:
    lines = []
    reason = "" if reading.gains else "in inference"
    for step in reading.program.steps:
        if isinstance(step, Stage):
            first = (*step.stands_for, *step.convs, step.norm)[0]
            alone = step.norm is None and step.activation == "none" and step.residual is None
            depthwise = bool(step.convs) and _modules.is_depthwise(step.convs[0])
            if first is not None and (depthwise or not alone):
                lines.append(Line(names[id(first)], describe(step), "fused", reason))
        elif isinstance(step, Call) and step.layer_norm is not None:
            lines.append(Line(names[id(step.layer_norm)], "layer norm", "fused", "in inference"))
        elif isinstance(step, Call) and step.kind == "module":
            why = _reason(step.target)
            if why is not None:
                lines.append(Line(names[id(step.target)], type(step.target).__name__, "left alone", why))
    return lines


def _reason(module: nn.Module) -> str | None:
    """Why a module runs as it is; ``None`` for one that nobody would expect to be fused."""
    if _modules.is_replaced(module):
        return "hooks have to see it run"
    if isinstance(module, nn.Conv2d):
        return "its convolution is not torch's plain one"
    if isinstance(module, nn.modules.batchnorm._BatchNorm) or "norm" in type(module).__name__.lower():
        return "not a plain batch norm"
    if any(isinstance(inner, nn.Conv2d) for inner in module.modules()):
        own = type(module).__module__.startswith("dwsep.")
        return "runs on these kernels already" if own else "holds no chain that can be read"
    return None


def describe(stage: Stage) -> str:
    """A chain in words."""
    parts = []
    if stage.convs:
        sizes = ["x".join(map(str, conv.kernel_size)) for conv in stage.convs]
        groups = stage.convs[0].groups
        kind = " depthwise" if _modules.is_depthwise(stage.convs[0]) else f" in {groups} groups" if groups > 1 else ""
        if len(sizes) > 1 and len(set(sizes)) == 1:
            sizes, kind = sizes[:1], f"{kind} in {len(stage.convs)} parts"
        parts.append(", ".join(sizes) + kind)
    parts += ["batch norm"] if stage.norm is not None else []
    parts += [stage.activation] if stage.activation != "none" else []
    parts += ["sum"] if stage.residual is not None else []
    return ", ".join(parts)
