"""Multivariate series with labels: the .ts files of the UCR and UEA archives, and .npz files."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dwsep.errors import unknown_name
from dwsep.training.data.examples import Examples, Normalisation, digest_of
from dwsep.training.data.splitting import class_names_of, divide, indices_of

SUFFIXES = (".ts", ".npz")
_SCALE, _NOISE = 0.1, 0.05


@dataclass(frozen=True)
class SeriesDataset(Examples):
    """Labelled series, held in memory.

    Args:
        values: Shape (N, C, L), float32; NaN where a value is missing, and behind the end of a shorter series.
        labels: Class indices of shape (N,), int64.
        class_names: One name per class.
        name: What the data is called in logs and reports.

    Raises:
        ValueError: If the shapes do not fit together, or there is nothing.
    """

    values: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    name: str
    unit: str = "series"

    def __post_init__(self) -> None:
        if self.values.dim() != 3 or self.values.numel() == 0 or len(self.values) != len(self.labels):
            raise ValueError(
                f"{self.name}: values must have shape (N, C, L) with N labels, got {tuple(self.values.shape)} and "
                f"{len(self.labels)} labels"
            )

    @property
    def targets(self) -> Tensor:
        """The labels."""
        return self.labels

    def statistics(self) -> Normalisation:
        """Mean and standard deviation of every channel over all values that there are."""
        channels = self.values.transpose(0, 1).flatten(1).double()
        means = channels.nanmean(1)
        deviations = (channels - means[:, None]).square().nanmean(1).sqrt()
        sound = [value if value > 1e-12 else 1.0 for value in deviations.tolist()]
        return Normalisation(tuple(0.0 if mean != mean else mean for mean in means.tolist()), tuple(sound))

    def draw(self, generator: torch.Generator) -> tuple[Tensor, list[int]]:
        """A scale and a seed per series."""
        scales = 1 + _SCALE * torch.randn(len(self), 1, 1, generator=generator)
        return scales, torch.randint(0, 2**62, (len(self),), generator=generator).tolist()

    def batch(
        self,
        chosen: Tensor | slice,
        normalisation: Normalisation,
        memory_format: torch.memory_format,
        randoms: Any = None,
        places: slice | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Normalised series of shape (N, C, L), scaled and with noise if augmented, and labels (N,)."""
        del memory_format
        values = self.values[chosen]
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None] for v in (normalisation.mean, normalisation.std))
        values = (values - mean) / std
        if randoms is not None:
            scales, seeds = randoms
            noise = [torch.randn(values.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds[places]]
            values = values * scales[places] + _NOISE * torch.stack(noise)
        # No batch is longer than its longest series.
        lengths = (~values.isnan()).any(1).any(0).nonzero()
        longest = int(lengths.max()) + 1 if len(lengths) else 1
        return values[..., :longest], self.labels[chosen]

    def digest(self) -> str:
        """A fingerprint of values and labels."""
        return digest_of(self.values, self.labels)

    def describe(self) -> dict[str, Any]:
        """Values per time step."""
        return {"in_channels": self.values.shape[1]}


def read_ts(path: str | os.PathLike[str]) -> tuple[Tensor, list[str]]:
    """Read a .ts file of the UCR and UEA archives, without timestamps.

    Args:
        path: The file.

    Returns:
        Values of shape (N, C, L), NaN where missing and behind the ends, and the labels.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has no data, no labels, timestamps, or a damaged line; the message names it.
    """
    path = Path(path)
    rows: list[list[list[float]]] = []
    labels: list[str] = []
    in_data = False
    for number, raw in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if not in_data:
            word, _, rest = line.lower().partition(" ")
            if word == "@timestamps" and rest.strip() == "true":
                raise ValueError(f"{path}, line {number}: series with timestamps cannot be read")
            if word == "@classlabel" and rest.strip().startswith("false"):
                raise ValueError(f"{path}, line {number}: the series have no labels")
            in_data = word == "@data"
            continue
        *channels, label = line.split(":")
        try:
            row = [[float("nan") if v.strip() in ("?", "") else float(v) for v in c.split(",")] for c in channels]
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if not row or (rows and len(row) != len(rows[0])):
            wanted = len(rows[0]) if rows else "at least 1"
            raise ValueError(f"{path}, line {number}: {len(row)} channels before the label, expected {wanted}")
        rows.append(row)
        labels.append(label.strip())
    if not rows:
        raise ValueError(f"{path} is empty: it has no series behind @data")
    longest = max(len(channel) for row in rows for channel in row)
    values = torch.full((len(rows), len(rows[0]), longest), float("nan"))
    for index, row in enumerate(rows):
        for channel, entries in enumerate(row):
            values[index, channel, : len(entries)] = torch.tensor(entries)
    return values, labels


def read_npz(path: str | os.PathLike[str], split: str) -> tuple[Tensor, list[str]] | None:
    """Read x (N, C, L), or (N, L), and y (N,) of a split from a .npz file.

    Args:
        path: The file; its arrays are named x and y, or x_train, y_train, x_test and y_test.
        split: "train" or "test".

    Returns:
        Values and labels; None if split is "test" and the file has x and y alone.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an array is missing or of another shape, or the file is damaged.
    """
    path = Path(path)
    try:
        # Opened here: numpy leaves a file that it cannot read open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name.lower(): file[name] for name in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged or no .npz file of plain arrays ({error})") from error
    suffix = f"_{split}" if f"x_{split}" in arrays else ""
    if not suffix and split == "test" and "x" in arrays:
        return None
    if f"x{suffix}" not in arrays or f"y{suffix}" not in arrays:
        raise ValueError(
            f"{path} has the arrays {', '.join(sorted(arrays)) or 'none'}; it needs x and y, or x_{split} and y_{split}"
        )
    x, y = arrays[f"x{suffix}"], arrays[f"y{suffix}"]
    if x.ndim == 2:
        x = x[:, None]
    if x.ndim != 3 or y.shape != (len(x),) or x.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: x must be numbers of shape (N, C, L) and y of shape (N,), got {x.shape} {x.dtype} and {y.shape}"
        )
    return torch.from_numpy(x.astype(np.float32)), [str(label) for label in y.tolist()]


def load_series(
    path: str | os.PathLike[str],
    split: str,
    *,
    test_path: str | os.PathLike[str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> SeriesDataset:
    """Load one split of labelled series; the classes are those of the training series.

    Args:
        path: A .ts file, whose name with _TEST in place of _TRAIN is the test split if there is one; a folder with one
            such pair; or a .npz file.
        split: "train" or "test".
        test_path: The file of the test series; None to find it as above, or to divide ``path``.
        test_fraction: Share of each class that goes to the test split if ``path`` is divided.
        seed: Decides that division.
        class_names: Of the network that the series are for; None for those of the training series.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If an option is out of range, a file is damaged, or the test series have other channels or a label
            that no training series has; the message names it.
    """
    if split not in ("train", "test"):
        raise unknown_name("split", split, ("train", "test"))
    train_path = _train_file(Path(path))
    if test_path is None and train_path.stem.upper().endswith("_TRAIN"):
        beside = [train_path.with_name(train_path.stem[:-6] + end + train_path.suffix) for end in ("_TEST", "_test")]
        test_path = next((candidate for candidate in beside if candidate.exists()), None)
    train = _read(train_path, "train")
    assert train is not None
    test = _read(Path(test_path), "test") or _read(Path(test_path), "train") if test_path is not None else None
    if test is None and train_path.suffix == ".npz":
        test = _read(train_path, "test")
    names = class_names_of(train[1]) if class_names is None else tuple(class_names)
    if test is None:
        parts = divide(train[1], test_fraction, seed, str(train_path))
        chosen = parts[split]
        values, labels, source = train[0][chosen], [train[1][i] for i in chosen], train_path
    else:
        values, labels = train if split == "train" else test
        source = train_path if split == "train" or test_path is None else Path(test_path)
        if values.shape[1] != train[0].shape[1]:
            raise ValueError(f"{source} has {values.shape[1]} channels, {train_path} has {train[0].shape[1]}")
    return SeriesDataset(values, indices_of(labels, names, str(source)), names, f"{source.stem} {split}")


def _train_file(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"data {path} does not exist")
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.stem.upper().endswith("_TRAIN") and file.suffix == ".ts")
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise ValueError(f"{path} must have one file named ..._TRAIN.ts, got {names}: name the file itself")
        return found[0]
    return path


def _read(path: Path, split: str) -> tuple[Tensor, list[str]] | None:
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: unknown kind of file {path.suffix!r}; known are {', '.join(SUFFIXES)}")
    return read_ts(path) if path.suffix.lower() == ".ts" else read_npz(path, split)
