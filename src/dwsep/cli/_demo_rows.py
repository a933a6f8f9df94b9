"""The rows of the demo's table: which network, written in what, in which memory format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Row:
    """One row: trained, tested and timed by itself.

    Attributes:
        key: Name in files.
        group: "dense", "eager" or "dwsep".
        label: Name in the table.
        network: Registered name of the network.
        plain: Whether the network is written in torch.nn layers alone.
        memory_format: "channels_last" or "contiguous".
    """

    key: str
    group: str
    label: str
    network: str
    plain: bool
    memory_format: str


ROWS = (
    Row("dense", "dense", "dense, PyTorch", "mobilenet_v1_dense", True, "channels_last"),
    Row("eager_nchw", "eager", "separable, PyTorch NCHW", "mobilenet_v1", True, "contiguous"),
    Row("eager_nhwc", "eager", "separable, PyTorch NHWC", "mobilenet_v1", True, "channels_last"),
    Row("dwsep", "dwsep", "separable, dwsep", "mobilenet_v1", False, "channels_last"),
)


def build(row: Row, *, num_classes: int, in_channels: int, options: dict[str, Any], seed: int) -> nn.Module:
    """Builds the network of a row; all separable rows begin with the same weights.

    Args:
        row: Which row.
        num_classes: Number of classes.
        in_channels: Channels of the images.
        options: Further options of the network.
        seed: Seed of the initial weights.

    Returns:
        The network in the row's memory format.
    """
    import torch

    from dwsep import networks
    from dwsep.accelerate import accelerate_

    torch.manual_seed(seed)
    model = networks.create(row.network, num_classes=num_classes, in_channels=in_channels, **options)
    if row.plain and row.network == "mobilenet_v1":
        model = as_plain(model, num_classes=num_classes, in_channels=in_channels, options=options)
    if not row.plain:
        accelerate_(model)
    return model.to(memory_format=torch_format(row.memory_format))  # type: ignore[call-overload]


def as_plain(model: nn.Module, *, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    """Builds the separable network from torch.nn layers alone, with the weights of ``model``."""
    from dwsep.networks._plain import mobilenet_v1_plain

    plain = mobilenet_v1_plain(num_classes, in_channels=in_channels, **options)
    plain.load_state_dict(model.state_dict(), strict=True)
    return plain


def torch_format(name: str) -> Any:
    """The memory format of PyTorch by its name."""
    import torch

    return {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}[name]


def verify(model: nn.Module, plain: nn.Module, images: Tensor) -> dict[str, float]:
    """Compares a network on dwsep with the plain one of the same weights, before either is timed.

    Norms folded into weights round differently, once per layer, so outputs differ by a few units of the last place
    times the depth of the network. A wrong kernel is off by far more.

    Args:
        model: Network on dwsep, in evaluation mode.
        plain: Network of torch.nn layers with the same weights, in evaluation mode.
        images: (N, C, H, W), float32, normalised.

    Returns:
        "max_abs_difference" between the logits, and the "tolerance".

    Raises:
        RuntimeError: The difference is larger than the tolerance, or not a number.
    """
    import torch

    worst = largest = 0.0
    with torch.inference_mode():
        for batch in (images, images[:1]):  # the shapes that are timed
            batch = batch.contiguous(memory_format=torch.channels_last)
            actual, expected = model(batch), plain(batch)
            difference = float((actual - expected).abs().max())
            worst = difference if difference != difference else max(worst, difference)
            largest = max(largest, float(expected.abs().max()))
    tolerance = 1e-4 * max(1.0, largest)
    if not worst <= tolerance:
        raise RuntimeError(
            f"dwsep and plain PyTorch differ by {worst:.3g} on the same weights, more than {tolerance:.3g}; nothing is "
            "timed for a wrong output. Run dwsep doctor"
        )
    return {"max_abs_difference": worst, "tolerance": tolerance}
