"""How other libraries name the parts of what are single layers and blocks here.

For each class, alternatives: each a mapping from a path inside our layer to the path inside theirs. Where several
libraries, or several of one library's layers, correspond to a class, the alternative of which the source has most is
taken. Paths that a mapping leaves out keep their names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dwsep.nn as dnn
from dwsep import networks
from dwsep.nn._separable import _DepthwiseSeparableConv

Names = dict[str, str]
LIBRARIES = ("dwsep", "timm", "torchvision", "smp", "bsconv", "torch", "keras", "tfjs")


def _separable(layer: Any) -> list[tuple[str, Names]]:
    return [
        ("timm", {"depthwise": "conv_dw", "pointwise": "conv_pw", "norm": "bn"}),
        ("timm", {"depthwise": "conv_dw", "inner_norm": "bn1", "pointwise": "conv_pw", "norm": "bn2"}),
        ("timm", {"depthwise": "conv_dw", "inner_norm": "bn_dw", "pointwise": "conv_pw", "norm": "bn_pw"}),
        ("timm", {"depthwise": "conv1", "pointwise": "pointwise"}),
        ("smp", {"depthwise": "0", "pointwise": "1", "norm": "2"}),
        ("smp", {"depthwise": "0.0", "pointwise": "0.1", "norm": "1"}),
        ("bsconv", {"pointwise": "pw", "inner_norm": "bn", "depthwise": "dw"}),
        ("torch", {"depthwise": "0", "inner_norm": "1", "pointwise": "3", "norm": "4"}),
        ("torch", {"depthwise": "0", "inner_norm": "1", "pointwise": "2", "norm": "3"}),
        ("torch", {"pointwise": "0", "depthwise": "1", "norm": "2"}),
    ]


def _blueprint(layer: Any) -> list[tuple[str, Names]]:
    if layer.variant == "U":
        return [("bsconv", {"pointwise": "pw", "inner_norm": "bn", "depthwise": "dw"})]
    names = {"reduce": "pw1", "reduce_norm": "bn1", "pointwise": "pw2", "inner_norm": "bn2", "depthwise": "dw"}
    return [("bsconv", names)]


def _inverted_residual(block: Any) -> list[tuple[str, Names]]:
    timm = {"squeeze_excite": "se"}
    expands, squeezes = hasattr(block, "expand"), hasattr(block, "squeeze_excite")
    if expands:
        timm |= {"expand": "conv_pw", "expand_norm": "bn1", "depthwise": "conv_dw", "depthwise_norm": "bn2"}
        timm |= {"project": "conv_pwl", "project_norm": "bn3"}
    else:
        timm |= {"depthwise": "conv_dw", "depthwise_norm": "bn1", "project": "conv_pw", "project_norm": "bn2"}
    first = int(expands)
    old = {"expand": "conv.0.0", "expand_norm": "conv.0.1"} if expands else {}
    old |= {"depthwise": f"conv.{first}.0", "depthwise_norm": f"conv.{first}.1"}
    old |= {"project": f"conv.{first + 1}", "project_norm": f"conv.{first + 2}"}
    new = {"expand": "block.0.0", "expand_norm": "block.0.1"} if expands else {}
    new |= {"depthwise": f"block.{first}.0", "depthwise_norm": f"block.{first}.1"}
    last = first + 1 + squeezes
    new |= {"squeeze_excite": f"block.{first + 1}", "project": f"block.{last}.0", "project_norm": f"block.{last}.1"}
    return [("timm", timm), ("torchvision", old), ("torchvision", new)]


def _xception(block: Any) -> list[tuple[str, Names]]:
    names = {"shortcut": "skip", "shortcut_norm": "skipbn"}
    start = 0 if block.activation is None else 1
    for index in range(len(block.layers)):
        names[f"layers.{index}"] = f"rep.{start + 3 * index}"
        names[f"layers.{index}.norm"] = f"rep.{start + 3 * index + 1}"
    aligned = {"shortcut": "shortcut.conv", "shortcut_norm": "shortcut.bn"}
    aligned |= {f"layers.{index}": f"stack.conv{index + 1}" for index in range(len(block.layers))}
    return [("timm", names), ("timm", aligned)]


def _convnext(block: Any) -> list[tuple[str, Names]]:
    timm = {"depthwise": "conv_dw", "expand": "mlp.fc1", "project": "mlp.fc2", "layer_scale": "gamma"}
    vision = {"depthwise": "block.0", "norm": "block.2", "expand": "block.3", "project": "block.5"}
    return [("timm", timm), ("torchvision", vision)]


def _aspp(block: Any) -> list[tuple[str, Names]]:
    names = {"pointwise.conv": "convs.0.0", "pointwise.norm": "convs.0.1"}
    count = len(block.branches)
    names |= {f"branches.{index}": f"convs.{index + 1}" for index in range(count)}
    names |= {"pool.conv": f"convs.{count + 1}.1", "pool.norm": f"convs.{count + 1}.2"}
    names |= {"project.conv": "project.0", "project.norm": "project.1"}
    return [("smp", names), ("torchvision", names)]


def _mixconv(layer: Any) -> list[tuple[str, Names]]:
    return [("timm", {f"branches.{index}": str(index) for index in range(len(layer.branches))})]


def _squeeze_excite(layer: Any) -> list[tuple[str, Names]]:
    return [
        ("timm", {"reduce": "conv_reduce", "expand": "conv_expand"}),
        ("timm", {"reduce": "fc1", "expand": "fc2"}),
        ("torchvision", {"reduce": "fc1", "expand": "fc2"}),
    ]


def _mobilenet(network: Any) -> list[tuple[str, Names]]:
    """MobileNetV2 and V3: torchvision's names are ours; timm numbers blocks within stages of one width."""
    names, stage, block, width = {"features.0.0": "conv_stem", "features.0.1": "bn1"}, -1, 0, None
    last = len(network.features) - 1
    for index in range(1, last):
        out = network.features[index].project.out_channels
        stage, block, width = (stage, block + 1, width) if out == width else (stage + 1, 0, out)
        names[f"features.{index}"] = f"blocks.{stage}.{block}"
    if len(network.classifier) == 2:
        names |= {f"features.{last}.0": "conv_head", f"features.{last}.1": "bn2", "classifier.1": "classifier"}
    else:
        names |= {f"features.{last}.0": f"blocks.{stage + 1}.0.conv", f"features.{last}.1": f"blocks.{stage + 1}.0.bn1"}
        names |= {"classifier.0": "conv_head", "classifier.3": "classifier"}
    return [("timm", names)]


def _xception_network(network: Any) -> list[tuple[str, Names]]:
    last = len(network.features)
    original = {"classifier": "fc"}
    for index in (0, 1):
        original |= {f"features.{index}.0": f"conv{index + 1}", f"features.{index}.1": f"bn{index + 1}"}
    original |= {f"features.{index}": f"block{index - 1}" for index in range(2, last - 2)}
    for place, index in ((3, last - 2), (4, last - 1)):
        original |= {f"features.{index}": f"conv{place}", f"features.{index}.norm": f"bn{place}"}
    aligned = {"classifier": "head.fc"}
    for index in (0, 1):
        aligned |= {f"features.{index}.0": f"stem.{index}.conv", f"features.{index}.1": f"stem.{index}.bn"}
    aligned |= {f"features.{index}": f"blocks.{index - 2}" for index in range(2, last - 3)}
    aligned |= {f"features.{last - 4 + place}": f"blocks.{last - 5}.stack.conv{place}" for place in (1, 2, 3)}
    return [("timm", original), ("timm", aligned)]


def _deeplab(network: Any) -> list[tuple[str, Names]]:
    names = {f"encoder.{index}": f"encoder.features.{index}" for index in range(len(network.encoder))}
    names |= {"aspp": "decoder.aspp.0", "aspp_conv.depthwise": "decoder.aspp.1.0"}
    names |= {"aspp_conv.pointwise": "decoder.aspp.1.1", "aspp_conv.norm": "decoder.aspp.2"}
    names |= {"low_level": "decoder.block1", "decoder": "decoder.block2", "classifier": "segmentation_head.0"}
    return [("smp", names)]


_ALTERNATIVES: dict[type, Callable[[Any], list[tuple[str, Names]]]] = {
    _DepthwiseSeparableConv: _separable,
    dnn.BlueprintSeparableConv2d: _blueprint,
    dnn.InvertedResidual: _inverted_residual,
    dnn.XceptionBlock: _xception,
    dnn.ConvNeXtBlock: _convnext,
    dnn.SeparableASPP: _aspp,
    dnn.MixConv2d: _mixconv,
    dnn.SqueezeExcite: _squeeze_excite,
    networks.MobileNetV2: _mobilenet,
    networks.MobileNetV3: _mobilenet,
    networks.Xception: _xception_network,
    networks.DeepLabV3Plus: _deeplab,
}


def alternatives(module: Any, library: str) -> list[Names]:
    """The namings of a module's inside which a source may have, ours first."""
    namings: list[Names] = [{}]
    for kind, make in _ALTERNATIVES.items():
        if isinstance(module, kind):
            namings += [names for origin, names in make(module) if library in ("auto", origin)]
    return namings
