"""What a load matched."""

from __future__ import annotations

from typing import NamedTuple


class Match(NamedTuple):
    """One tensor: its name in the model, its name in the source (empty if it has none), and what was done."""

    name: str
    source: str
    what: str


class LoadReport(NamedTuple):
    """What :func:`dwsep.weights.load` did with every tensor.

    Attributes:
        matched: tensors which were copied, with "reshaped" where axes of size 1 differ.
        filled: tensors which the source's layers do not have, and what they were set to: biases 0, as layers without
            bias compute; counters of batches kept.
        missing: tensors of the model that the source lacks; they keep their values.
        unused: tensors of the source that the model has no place for.
        settings: values other than tensors which were taken over, such as a batch norm's eps.
    """

    matched: tuple[Match, ...]
    filled: tuple[Match, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    settings: tuple[Match, ...]

    @property
    def summary(self) -> str:
        """The counts in one line."""
        counts = {
            "matched": self.matched, "filled": self.filled, "missing": self.missing, "unused": self.unused,
        }  # fmt: skip
        return ", ".join(f"{len(entries)} {name}" for name, entries in counts.items() if entries or name == "matched")

    def __str__(self) -> str:
        rows = [("name", "source", "what"), *self.matched, *self.filled]
        rows += [(name, "", "missing") for name in self.missing]
        rows += [("", name, "unused") for name in self.unused]
        rows += self.settings
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"{name:{widths[0]}}  {source:{widths[1]}}  {what}".rstrip() for name, source, what in rows]
        return "\n".join([self.summary, *lines])
