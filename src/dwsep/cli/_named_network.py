"""Networks by name for commands: ours, timm's and torchvision's, with a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class NamedNetwork(NamedTuple):
    """A network, and what its images are.

    Attributes:
        model: in evaluation mode.
        in_channels: of its images.
        image_size: height and width in pixels.
        mean, std: its images are normalised with.
        info: of our own networks, what their model file says, as JSON.
    """

    model: nn.Module
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    info: str | None


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
        model, mean, std, size = _torchvision(own, num_classes), *_IMAGENET, size or 224
    elif library:
        raise ValueError(f"network: unknown library {library!r}, valid: 'timm', 'torchvision'")
    else:
        return _ours(own, checkpoint, size)
    if checkpoint is not None:
        _load(model, checkpoint)
    return NamedNetwork(model.eval(), 3, size, mean, std, None)


def _ours(name: str, checkpoint: Path | None, size: int | None) -> NamedNetwork:
    from dwsep import networks
    from dwsep.networks._weights import read_model

    if name not in networks.names():
        raise ValueError(f"network: unknown name {name!r}, valid: {', '.join(networks.names())}, timm:NAME, "
                         "torchvision:NAME")  # fmt: skip
    if checkpoint is None:
        raise ValueError(f"{name} needs --checkpoint, which also tells its options")
    _, info = read_model(checkpoint)
    model = networks.create(
        name, num_classes=info.num_classes, in_channels=info.in_channels, weights=checkpoint, **info.options
    )
    side = size or max(info.image_size) or 224
    return NamedNetwork(model.eval(), info.in_channels, side, info.mean, info.std, info.to_json())


def _timm(name: str, num_classes: int, size: int | None) -> tuple[Any, int, Any, Any]:
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise ImportError(
            f"timm: networks need timm ({error}); install it with: pip install 'dwsep[bench]'", name=error.name
        ) from error
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name}*")[:5])
        raise ValueError(f"network: timm has no model {name!r}" + (f"; did you mean {near}" if near else ""))
    model = timm.create_model(name, pretrained=False, num_classes=num_classes)
    data = timm.data.resolve_model_data_config(model)  # type: ignore[reportPrivateImportUsage]
    return model, size or data["input_size"][-1], tuple(data["mean"]), tuple(data["std"])


def _torchvision(name: str, num_classes: int) -> Any:
    try:
        import torchvision
    except ImportError as error:
        raise ImportError(
            f"torchvision: networks need torchvision ({error}); install it with: pip install 'dwsep[bench]'",
            name=error.name,
        ) from error
    if name not in torchvision.models.list_models():
        raise ValueError(f"network: torchvision has no model {name!r}")
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes)


def _load(model: nn.Module, checkpoint: Path) -> None:
    from dwsep import weights

    source = weights.read(checkpoint)
    state = {name.removeprefix("module."): tensor for name, tensor in source.tensors.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} does not fit the network: {' '.join(str(error).split())[:300]}") from error
