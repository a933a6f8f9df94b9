"""Networks by name for commands: ours, timm's and torchvision's, with a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dwsep.cli._analyze_networks import has_backbone, library_module, own_size, unknown_in, unknown_own

if TYPE_CHECKING:
    from torch import nn

    from dwsep.networks._weights import ModelInfo

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class NamedNetwork(NamedTuple):
    """A network, and what its images are.

    Attributes:
        model: in evaluation mode.
        in_channels: of its images.
        image_size: height and width in pixels.
        mean, std: its images are normalised with.
        info: of our own networks, what their model file says.
    """

    model: nn.Module
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    info: ModelInfo | None


def build(name: str, checkpoint: Path | None, *, num_classes: int, size: int | None) -> NamedNetwork:
    """Build ``timm:NAME``, ``torchvision:NAME`` or one of :func:`dwsep.networks.names`.

    Args:
        name: of the network.
        checkpoint: its weights; ours need one, which also tells the options. Of the others ``None`` leaves random ones.
        num_classes: of timm's and torchvision's.
        size: height and width of the images; ``None`` for what the network was made for.

    Raises:
        ImportError: timm or torchvision is missing (extra "bench").
        ValueError: an unknown name, or a checkpoint that does not fit.
    """
    library, _, own = name.rpartition(":")
    if library == "timm":
        model, size, mean, std = _timm(own, num_classes, size)
    elif library == "torchvision":
        model, size, mean, std = _torchvision(own, num_classes, size)
    elif library:
        raise ValueError(f"network: unknown library {library!r}, valid: 'timm', 'torchvision'")
    else:
        return _ours(own, checkpoint, size)
    if checkpoint is not None:
        _load(name, model, checkpoint, num_classes)
    return NamedNetwork(model.eval(), 3, size, mean, std, None)


def _ours(name: str, checkpoint: Path | None, size: int | None) -> NamedNetwork:
    from dwsep import networks
    from dwsep.networks._weights import read_model

    if name not in networks.names():
        raise unknown_own(name, (*networks.names(), "timm:NAME", "torchvision:NAME"))
    if checkpoint is None:
        raise ValueError(f"{name} needs --checkpoint, which also tells its options")
    _, info = read_model(checkpoint)
    if info.task not in ("classify", "segment"):
        raise ValueError(f"{checkpoint} is of the task {info.task}, this command takes networks for images; in Python, "
                         "dwsep.separate_ takes any")  # fmt: skip
    model = networks.create(
        name, num_classes=info.num_classes, in_channels=info.in_channels, weights=checkpoint, **info.options
    )
    side = size or max(info.image_size) or 224
    return NamedNetwork(model.eval(), info.in_channels, side, info.mean, info.std, info)


def _timm(name: str, num_classes: int, size: int | None) -> tuple[Any, int, Any, Any]:
    timm, data = library_module("timm"), library_module("timm.data")
    if not timm.is_model(name):
        raise unknown_in("timm", name, timm.list_models())
    model = timm.create_model(name, pretrained=False, num_classes=num_classes)
    config = data.resolve_model_data_config(model)
    return model, size or config["input_size"][-1], tuple(config["mean"]), tuple(config["std"])


def _torchvision(name: str, num_classes: int, size: int | None) -> tuple[Any, int, Any, Any]:
    models = library_module("torchvision.models")
    if name not in models.list_models():
        raise unknown_in("torchvision", name, models.list_models())
    backbone = {"weights_backbone": None} if has_backbone(name) else {}  # or it would be downloaded
    try:
        model = models.get_model(name, weights=None, num_classes=num_classes, **backbone)
    except TypeError as error:
        raise ValueError(f"network: torchvision:{name} has no classes of images or pixels to tell ({error}); in "
                         "Python, dwsep.separate_ takes any network") from error  # fmt: skip
    return model, size or own_size(models, name), *_IMAGENET


def _load(name: str, model: nn.Module, checkpoint: Path, num_classes: int) -> None:
    from dwsep import weights

    source = weights.read(checkpoint)
    state = {name.removeprefix("module."): tensor for name, tensor in source.tensors.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} does not fit {name} with {num_classes} classes (--num-classes sets others): "
                         f"{' '.join(str(error).split())[:300]}") from error  # fmt: skip
