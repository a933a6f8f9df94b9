"""Weights of another library into a model, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.errors import ArgumentError, unknown_name
from dwsep.nn._depthwise import _DepthwiseConv
from dwsep.nn._separable import _DepthwiseSeparableConv
from dwsep.weights import _names
from dwsep.weights._report import LoadReport, Match
from dwsep.weights._sources import Source, read

_TENSORFLOW = ("keras", "tfjs")


def load(
    model: nn.Module,
    source: Any,
    *,
    library: str = "auto",
    names: Mapping[str, str] | None = None,
    strict: bool = True,
) -> LoadReport:
    """Copy weights of another library into a model built from dwsep's layers, in place.

    How timm, torchvision, segmentation_models_pytorch (smp) and bsconv name the parts of a separable convolution, an
    inverted residual and so on is known; ``names`` says which module of the source a module of the model is, where
    paths differ above that. Keras's and TensorFlow.js's kernels (H, W, C, M) and (H, W, in, out) are laid out anew;
    their layers are matched in the order of the file, kind by kind, where ``names`` is not given.

    Args:
        model: a layer or a network; all that holds parameters is loaded.
        source: a module, a dict of tensors, or a file, as :func:`read` takes it.
        library: ``"auto"``, or one of ``"dwsep"``, ``"timm"``, ``"torchvision"``, ``"smp"``, ``"bsconv"``, ``"torch"``
            to allow that library's names alone; ``"keras"`` and ``"tfjs"`` follow from the file.
        names: from the path of a module in the model to the path of its counterpart in the source, such as
            ``{"blocks.0": "features.1", "head.norm": "batch_normalization_3"}``; ``""`` is the whole.
        strict: whether to raise if a tensor is missing or left over; if not, the report tells.

    Returns:
        What was matched, filled, missing and unused; print it.

    Raises:
        ArgumentError: (a ``ValueError``) a tensor is missing, unused (both if ``strict``) or of another shape; the
            model is then unchanged. ``names`` has a path which the model does not have.
        FileNotFoundError: there is no such file.
        ImportError: a package that the file's format needs is missing.
        TypeError: an argument of the wrong type.

    Cost: one copy of the weights.

    Example:
        >>> import torch, dwsep
        >>> theirs = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=4, bias=False), torch.nn.Conv2d(4, 8, 1))
        >>> ours = dwsep.nn.DepthwiseSeparableConv2d(4, 8, padding="valid")
        >>> report = dwsep.weights.load(ours, theirs)
        >>> print(report)
        3 matched, 1 filled
        name              source    what
        depthwise.weight  0.weight  copied
        pointwise.weight  1.weight  copied
        pointwise.bias    1.bias    copied
        depthwise.bias              0
        >>> x = torch.ones(1, 4, 5, 5)
        >>> torch.allclose(ours(x), theirs(x), atol=1e-6)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    if library != "auto" and library not in _names.LIBRARIES:
        raise unknown_name("library", library, ("auto", *_names.LIBRARIES))
    content = read(source)
    given = dict(names or {})
    modules = dict(model.named_modules())
    for path in given:
        if path not in modules:
            raise ArgumentError(f"names: the model has no module {path!r}")
    if content.library in _TENSORFLOW:
        given = _in_order(model, content) if names is None else given
        pairs = dict(_tensorflow_pairs(model, given, content))
    else:
        pairs = dict(_pairs(model, "", given.get("", ""), given, library, content.tensors.keys()))
    return _copy(model, pairs, content, given, strict)


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _own_tensors(module: nn.Module) -> list[str]:
    tensors = [name for name, value in module._parameters.items() if value is not None]
    hidden = module._non_persistent_buffers_set
    return tensors + [name for name, value in module._buffers.items() if value is not None and name not in hidden]


def _pairs(
    module: nn.Module, ours: str, theirs: str, given: Mapping[str, str], library: str, keys: Any
) -> Iterator[tuple[str, str]]:
    """Our names and theirs of all tensors of a module at path ``ours``, whose counterpart is at ``theirs``."""
    best: list[tuple[str, str]] = []
    found = -1
    for naming in _names.alternatives(module, library):
        # What the caller says comes before what is known.
        merged = {**{_join(ours, path): _join(theirs, name) for path, name in naming.items()}, **given}
        pairs = [
            (_join(ours, name), merged.get(_join(ours, name), _join(theirs, name))) for name in _own_tensors(module)
        ]
        for name, child in module._modules.items():
            if child is not None:
                path = _join(ours, name)
                pairs += _pairs(child, path, merged.get(path, _join(theirs, name)), merged, library, keys)
        count = sum(source in keys for _, source in pairs)
        if count > found:
            best, found = pairs, count
    yield from best


# A model's parts which have weights, by what a layer of TensorFlow can be.
_KINDS: dict[str, Any] = {
    "separable convolution": _DepthwiseSeparableConv,
    "depthwise convolution": _DepthwiseConv,
    "convolution": nn.modules.conv._ConvNd,
    "batch norm": nn.modules.batchnorm._BatchNorm,
    "linear layer": nn.Linear,
}


def _units(module: nn.Module, path: str = "") -> Iterator[tuple[str, str]]:
    """Path and kind of every part of a model that one layer of TensorFlow has the weights of."""
    kind = next((kind for kind, cls in _KINDS.items() if isinstance(module, cls)), None)
    if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
        kind = "depthwise convolution"
    if kind is not None:
        yield path, kind
    separable = isinstance(module, _DepthwiseSeparableConv) and module.inner_norm is None
    for name, child in module._modules.items():
        if child is not None and not (separable and name in ("depthwise", "pointwise")):
            yield from _units(child, _join(path, name))


def _in_order(model: nn.Module, content: Source) -> dict[str, str]:
    """The model's parts and the file's layers, kind by kind in the order of each."""
    units = list(_units(model))
    result: dict[str, str] = {}
    for kind in _KINDS:
        parts = [path for path, own in units if own == kind]
        layers = [name.removesuffix(".kind") for name, value in content.settings.items() if value == kind]
        if len(parts) != len(layers):
            raise ArgumentError(
                f"the model has {len(parts)} parts that are a {kind} and the source {len(layers)}: give names, from "
                f"the paths {parts} to the layers {layers}"
            )
        result |= dict(zip(parts, layers, strict=True))
    return result


def _tensorflow_pairs(model: nn.Module, given: Mapping[str, str], content: Source) -> Iterator[tuple[str, str]]:
    modules = dict(model.named_modules())
    claimed = set()
    for path, layer in given.items():
        module = modules[path]
        parts = ("depthwise", "pointwise") if isinstance(module, _DepthwiseSeparableConv) else ("",)
        for part in parts:
            owner = module.get_submodule(part) if part else module
            for name in _own_tensors(owner):
                claimed.add(_join(path, part, name))
                yield _join(path, part, name), _join(layer, part, name)
    for name in model.state_dict():
        if name not in claimed:
            yield name, ""


def _copy(
    model: nn.Module, pairs: dict[str, str], content: Source, given: Mapping[str, str], strict: bool
) -> LoadReport:
    own = model.state_dict(keep_vars=True)
    matched, filled, missing, faults = [], [], [], []
    copies: list[tuple[Tensor, Tensor | None]] = []
    for name, source in pairs.items():
        target, tensor = own[name], content.tensors.get(source) if source else None
        if tensor is None:
            if name.endswith("num_batches_tracked"):
                filled.append(Match(name, "", "kept"))
            elif name.endswith("bias") and _has_weight(name, pairs, content):
                filled.append(Match(name, "", "0"))
                copies.append((target, None))
            else:
                missing.append(name)
            continue
        shape = [size for size in tensor.shape if size != 1]
        if shape != [size for size in target.shape if size != 1]:
            faults.append(f"{name} has shape {tuple(target.shape)}, {source} {tuple(tensor.shape)}")
            continue
        same = tensor.shape == target.shape
        matched.append(Match(name, source, "copied" if same else "reshaped"))
        copies.append((target, tensor if same else tensor.reshape(target.shape)))
    used = {match.source for match in matched}
    root = f"{given['']}." if given.get("") else ""
    unused = [name for name in content.tensors if name not in used and name.startswith(root)]
    if strict:
        faults += [f"{name} is missing" for name in missing] + [f"{name} is unused" for name in unused]
    if faults:
        shown = "; ".join(faults[:5])
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ArgumentError(f"the source does not fit the model: {shown}{more}")
    settings = _settings(model, given, content)
    with torch.no_grad():
        for target, tensor in copies:
            target.zero_() if tensor is None else target.copy_(tensor)
    return LoadReport(tuple(matched), tuple(filled), tuple(missing), tuple(unused), tuple(settings))


def _has_weight(name: str, pairs: dict[str, str], content: Source) -> bool:
    """Whether a bias's module gets its weight, so that the source has the module but without bias."""
    weight = pairs.get(f"{name.removesuffix('bias')}weight", "")
    return weight in content.tensors or pairs.get(f"{name.removesuffix('bias')}running_mean", "") in content.tensors


def _settings(model: nn.Module, given: Mapping[str, str], content: Source) -> list[Match]:
    """Take over what a Keras layer's configuration says beside its weights."""
    matches = []
    for path, layer in given.items():
        eps = content.settings.get(f"{layer}.eps")
        module: Any = model.get_submodule(path)
        if eps is not None and hasattr(module, "eps"):
            module.eps = eps
            matches.append(Match(_join(path, "eps"), f"{layer}.eps", str(eps)))
    return matches
