"""The networks that ``dwsep analyze`` can be given, by name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dwsep.errors import ArgumentError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dwsep.analysis import CostReport

_SIZE = 224
_LENGTH = 256  # of texts and series
_VOCABULARY = 10_000


@dataclass(frozen=True)
class Loaded:
    """A network and its input, by the name it was asked for."""

    name: str
    model: nn.Module
    x: Tensor

    def report(self, *, latency: bool, training: bool, accelerated: bool, seconds: float) -> CostReport:
        """Analyses it."""
        import dwsep

        name = self.name
        if accelerated:
            dwsep.accelerate_(self.model)
            name += ", accelerated"
        return dwsep.analyze(self.model, self.x, latency=latency, training=training, seconds=seconds, name=name)


def load(name: str, shape: str | None, *, meta: bool, training: bool, channels_last: bool) -> Loaded:
    """Makes a network, and an input for it.

    Args:
        name: One of dwsep's, "timm:NAME", "torchvision:NAME" or "FILE.py:FUNCTION".
        shape: Of the input, "1,3,224,224"; None for one image, in training two, of the network's own size.
        meta: Whether on "meta", without data.
        training: Whether in training mode.
        channels_last: Whether weights and input lie channels last.

    Raises:
        ArgumentError: An unknown network, or what is no shape.
        ImportError: The library that has it is not installed.
        TypeError: A function that makes no network.
        RuntimeError: A file or its function fails, or the network cannot run on such an input.
    """
    import torch

    device = torch.device("meta") if meta and not _looks_at_data(name) else nullcontext()
    with device:
        model, own = _make(name)
        sizes = _shape(shape) if shape is not None else (2 if training else 1, *own)
        dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
        x = torch.randint(2, _VOCABULARY, sizes) if _takes_tokens(name) else torch.rand(sizes).to(dtype)
    check_runs(name, model, x, "--input")
    model.train(training)
    if channels_last:
        if x.dim() != 4:
            shape = ",".join(map(str, x.shape))
            raise ArgumentError(f"--channels-last needs a network of images, (N, C, H, W), {name} takes {shape}")
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Loaded(Path(name).name if ".py:" in name else name, model, x)  # without the folders of a file


def _takes_tokens(name: str) -> bool:
    from dwsep import networks

    return name in networks.names("text")


def _looks_at_data(name: str) -> bool:
    """Whether a network's way depends on what its input holds, on where a series ends: on "meta" it cannot run."""
    from dwsep import networks

    return name in (*networks.names("text"), *networks.names("series"))


def check_runs(name: str, model: nn.Module, x: Tensor, option: str) -> None:
    """Makes sure that a network takes an input.

    Raises:
        RuntimeError: It does not; the message names the option that sets another.
    """
    import torch

    try:
        with torch.no_grad():
            model.eval()(x)
    except Exception as error:
        shape = ",".join(map(str, x.shape))
        what = " ".join(str(error).split())
        raise RuntimeError(
            f"network: {name} cannot run on an input of shape {shape} ({option} sets another): {type(error).__name__}: "
            f"{what}"
        ) from error


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ArgumentError(f"--input must be positive sizes separated by commas, such as 1,3,224,224, got {text!r}")
    return sizes


def _make(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network and the shape of one of its inputs."""
    library, colon, rest = name.rpartition(":")
    if colon and library == "timm":
        timm = library_module("timm")
        if not timm.is_model(rest):
            raise unknown_in("timm", rest, timm.list_models())
        model = timm.create_model(rest)
        return model, tuple(model.pretrained_cfg.get("input_size", (3, _SIZE, _SIZE)))
    if colon and library == "torchvision":
        models = library_module("torchvision.models")
        if rest not in models.list_models():
            raise unknown_in("torchvision", rest, models.list_models())
        options = {"weights": None, **({"weights_backbone": None} if has_backbone(rest) else {})}
        return models.get_model(rest, **options), (3, own_size(models, rest), own_size(models, rest))
    if colon and library.endswith(".py"):
        return _from_file(Path(library), rest), (3, _SIZE, _SIZE)
    if name.endswith(".py"):
        raise ArgumentError(f"network: which function of the file makes it? FILE.py:FUNCTION, got {name!r}")
    return _own(name)


def _own(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    from dwsep import networks

    if name not in networks.names():
        raise unknown_own(name, (*networks.names(), "timm:NAME", "torchvision:NAME", "FILE.py:FUNCTION"))
    task = networks.task_of(name)
    if task == "text":
        return networks.create(name, num_classes=2, vocabulary_size=_VOCABULARY), (_LENGTH,)
    if task == "series":
        return networks.create(name, num_classes=10, in_channels=12), (12, _LENGTH)
    return networks.create(name, num_classes=21 if task == "segment" else 1000), (3, _SIZE, _SIZE)


def _elsewhere(name: str) -> str:
    """Where a library that is installed has a network of this name."""
    places = []
    for library, module, listed in (("timm", "timm", "is_model"), ("torchvision", "torchvision.models", "list_models")):
        if importlib.util.find_spec(library) is not None:
            look = getattr(importlib.import_module(module), listed)
            if look(name) if library == "timm" else name in look():
                places.append(f"{library}:{name}")
    return f"; did you mean {' or '.join(places)}?" if places else ""


def unknown_own(name: str, valid: tuple[str, ...]) -> ArgumentError:
    """The error for a name that dwsep does not have, with the library that has it."""
    return ArgumentError(f"{unknown_name('network', name, valid)}{_elsewhere(name)}")


def unknown_in(library: str, name: str, names: Sequence[str]) -> ArgumentError:
    """The error for a name that a library does not have, with names close to it."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    also = f"; close ones are {', '.join(near)}" if near else ""
    return ArgumentError(f"network: {library} has no {name!r}{also}")


def has_backbone(name: str) -> bool:
    """Whether a network of torchvision is built on another, whose weights are an option of their own."""
    return any(part in name for part in ("deeplab", "fcn_", "lraspp", "rcnn", "retinanet", "ssd", "fcos"))


def own_size(models: Any, name: str) -> int:
    """Pixels of the images that a network of torchvision was made for."""
    try:
        weights = models.get_model_weights(name)
        return int(next(iter(weights)).transforms().crop_size[0])
    except (AttributeError, StopIteration, ValueError, IndexError):
        return _SIZE


def library_module(name: str) -> Any:
    """A module of timm or torchvision, or an ImportError that names the extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"networks of {package} need it ({error}); install it with: pip install 'dwsep[bench]'", name=error.name
        ) from error


def _from_file(path: Path, attribute: str) -> nn.Module:
    """What a function in a Python file returns; a file's own imports are looked up beside it."""
    from torch import nn

    if not path.is_file():
        raise FileNotFoundError(2, "No such file", str(path))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        with _told_as(f"network: {path} cannot be loaded"):
            spec.loader.exec_module(module)
        make: Callable[[], Any] | None = getattr(module, attribute, None)
        if not callable(make):
            raise ArgumentError(f"network: {path} has no function or class {attribute!r}")
        _check_takes_nothing(path, attribute, make)
        with _told_as(f"network: {attribute} of {path} failed"):
            model = make()
    finally:
        sys.path.remove(str(path.parent))
    if not isinstance(model, nn.Module):
        raise TypeError(f"network: {attribute} of {path} must return a torch.nn.Module, got {type(model).__name__}")
    return model


@contextmanager
def _told_as(what: str) -> Iterator[None]:
    """Whatever goes wrong in a user's file, as one line that says what it came from."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{what}: {type(error).__name__}: {error} (dwsep --debug shows where)") from error


def _check_takes_nothing(path: Path, attribute: str, make: Callable[..., Any]) -> None:
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise TypeError(f"network: {attribute} of {path} must be callable without arguments: {error}") from None
    except ValueError:
        return  # nobody knows what it takes
