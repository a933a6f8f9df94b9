"""Texts with labels: tables and lines of JSON, split into words and numbered."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dwsep.training.data import huggingface
from dwsep.training.data.examples import Examples, Normalisation, digest_of
from dwsep.training.data.files import read_file
from dwsep.training.data.splitting import class_names_of, divide, indices_of

PADDING, UNKNOWN = 0, 1
# Words, single characters where a script has no spaces (CJK, kana, Thai), and single signs.
_WORD = re.compile(
    "[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+(?:'\\w+)?|[^\\w\\s]"
)
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
SUFFIXES = (*_DELIMITERS, ".jsonl")
_WORD_DROPOUT = 0.1


def tokenize(text: str) -> list[str]:
    """Split a text into lower-case words, signs, and characters of scripts without spaces.

    Example:
        >>> tokenize("It isn't bad: 好看!")
        ['it', "isn't", 'bad', ':', '好', '看', '!']
    """
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Vocabulary:
    """The words that a network knows; word i is token i + 2, after padding and unknown.

    Args:
        words: In the order of their tokens.

    Example:
        >>> vocabulary = Vocabulary.of(["a b", "a c", "a"], min_count=1)
        >>> len(vocabulary), vocabulary.encode("c a z").tolist()
        (5, [4, 2, 1])
    """

    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str], *, min_count: int = 2, max_size: int = 20_000) -> Vocabulary:
        """Take the words that occur at least min_count times, the most frequent first, at most max_size."""
        counts = Counter(word for text in texts for word in tokenize(text))
        ranked = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        return cls(tuple(ranked[: max(0, max_size - 2)]))

    def __len__(self) -> int:
        """Number of tokens, padding and unknown among them."""
        return len(self.words) + 2

    def encode(self, text: str, max_length: int = 512) -> Tensor:
        """The tokens of a text's first words, (L,), int64; one unknown where there are none."""
        index = self._index()
        found = [index.get(word, UNKNOWN) for word in tokenize(text)[:max_length]]
        return torch.tensor(found or [UNKNOWN], dtype=torch.int64)

    def _index(self) -> dict[str, int]:
        cached = self.__dict__.get("_cached")
        if cached is None:
            cached = {word: token for token, word in enumerate(self.words, 2)}
            object.__setattr__(self, "_cached", cached)
        return cached


@dataclass(frozen=True)
class TextDataset(Examples):
    """Labelled texts as tokens, held in memory.

    Args:
        tokens: Of each text, (L,), int64.
        labels: Class indices of shape (N,), int64.
        class_names: One name per class.
        vocabulary: What the tokens are.
        name: What the data is called in logs and reports.

    Raises:
        ValueError: If there is no text, or not one label for each.
    """

    tokens: tuple[Tensor, ...]
    labels: Tensor
    class_names: tuple[str, ...]
    vocabulary: Vocabulary
    name: str
    unit: str = "texts"

    def __post_init__(self) -> None:
        if not self.tokens or len(self.tokens) != len(self.labels):
            raise ValueError(f"{self.name}: {len(self.tokens)} texts and {len(self.labels)} labels")

    @property
    def targets(self) -> Tensor:
        """The labels."""
        return self.labels

    def draw(self, generator: torch.Generator) -> list[int]:
        """A seed per text."""
        return torch.randint(0, 2**62, (len(self),), generator=generator).tolist()

    def batch(
        self,
        chosen: Tensor | slice,
        normalisation: Normalisation,
        memory_format: torch.memory_format,
        randoms: Any = None,
        places: slice | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens of shape (N, L), int64, padded to the longest, a tenth of them unknown if augmented; labels (N,)."""
        del normalisation, memory_format
        indices = range(len(self))[chosen] if isinstance(chosen, slice) else chosen.tolist()
        texts = [self.tokens[index] for index in indices]
        if randoms is not None:
            texts = [_drop_words(text, seed) for text, seed in zip(texts, randoms[places], strict=True)]
        padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=PADDING)
        return padded, self.labels[chosen]

    def digest(self) -> str:
        """A fingerprint of tokens and labels."""
        return digest_of(torch.cat(self.tokens), self.labels)

    def describe(self) -> dict[str, Any]:
        """The vocabulary."""
        return {"extra": {"vocabulary": list(self.vocabulary.words)}}

    def network_options(self) -> dict[str, Any]:
        """The vocabulary's size."""
        return {"vocabulary_size": len(self.vocabulary)}


def _drop_words(text: Tensor, seed: int) -> Tensor:
    drop = torch.rand(len(text), generator=torch.Generator().manual_seed(seed)) < _WORD_DROPOUT
    return text.masked_fill(drop, UNKNOWN)


def read_table(
    path: str | os.PathLike[str],
    *,
    text_column: str = "text",
    label_column: str = "label",
    encoding: str = "utf-8",
    split: str = "train",
) -> tuple[list[str], list[str]]:
    """Read texts and labels from a table with a head line (.csv, .tsv) or from lines of JSON objects (.jsonl).

    Args:
        path: The file; or a data set of Hugging Face's library, as :func:`dwsep.training.data.huggingface.open_split`
            names them.
        text_column: Name of the column, or key, of the texts.
        label_column: Name of the column, or key, of the labels.
        encoding: Of the file.
        split: "train" or "test" of such a data set, which may have no test split; a file is one split.

    Returns:
        Texts and labels, both as strings; nothing where there is no such split.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If it is such a data set and datasets is not installed.
        ValueError: If the suffix is unknown, a column is missing, a line is damaged or has no label, or there is no
            line; the message names file and line.
    """
    if huggingface.is_hub(path):
        data = huggingface.open_split(path, split)
        if data is None:
            return [], []
        columns = (huggingface.column_of(data, column, path) for column in (text_column, label_column))
        texts, labels = ([str(value) for value in column] for column in columns)
        return texts, labels
    path = Path(path)
    texts, labels = [], []
    for number, row in _read_rows(path, (text_column, label_column), encoding):
        label = str(row[label_column]).strip()
        if not label:
            raise ValueError(f"{path}, line {number}: the label is empty")
        texts.append(str(row[text_column]))
        labels.append(label)
    return texts, labels


def read_texts(path: str | os.PathLike[str], *, text_column: str = "text", encoding: str = "utf-8") -> list[str]:
    """Read the texts of a file as :func:`read_table` does, without labels."""
    return [str(row[text_column]) for _, row in _read_rows(Path(path), (text_column,), encoding)]


def _read_rows(path: Path, columns: Sequence[str], encoding: str) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a file with the numbers of their lines; each has the columns, and there is at least one."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: unknown kind of file {path.suffix!r}; known are {', '.join(SUFFIXES)}")
    rows = list(_rows(io.StringIO(read_file(path, encoding), newline=""), path))
    if not rows:
        raise ValueError(f"{path} is empty: it has no line with {' and '.join(columns)}")
    for number, row in rows:
        for column in columns:
            if column not in row:
                raise ValueError(
                    f"{path}, line {number}: no column {column!r}, the columns are {', '.join(map(repr, row))}"
                )
            if row[column] is None:
                raise ValueError(f"{path}, line {number}: nothing in the column {column!r}")
    return rows


def _rows(file: Any, path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    delimiter = _DELIMITERS.get(path.suffix.lower())
    return _table_rows(file, path, delimiter) if delimiter is not None else _json_rows(file, path)


def _table_rows(file: Any, path: Path, delimiter: str) -> Iterable[tuple[int, dict[str, Any]]]:
    # A table of tabs has no quotes that mean anything: texts are full of single ones.
    quoted = delimiter != "\t"
    reader = csv.DictReader(file, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    try:
        for row in reader:
            # Values behind the last column: a text with a delimiter in it was cut, its rest would pass for the label.
            if any(row.pop(None, ())):  # type: ignore[call-overload]
                rule = "; a text with commas must stand in double quotes" if quoted else ""
                raise ValueError(f"{path}, line {reader.line_num}: more values than the {len(row)} columns{rule}")
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; is a double quote not closed?") from error


def _json_rows(file: Any, path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: must be a JSON object, got {type(row).__name__}")
        yield number, row


def load_text(
    path: str | os.PathLike[str],
    split: str,
    *,
    test_path: str | os.PathLike[str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    text_column: str = "text",
    label_column: str = "label",
    encoding: str = "utf-8",
    max_length: int = 512,
    min_count: int = 2,
    vocabulary: Vocabulary | None = None,
    class_names: Sequence[str] | None = None,
) -> TextDataset:
    """Load one split of labelled texts; vocabulary and classes are those of the training texts.

    Args:
        path: The table of the training texts, or of all; or ``hf:`` and a data set of Hugging Face's library.
        split: "train" or "test".
        test_path: The table of the test texts; None for such a data set's own, or to divide ``path``, every class by
            the same share.
        test_fraction: Share of each class that goes to the test split then.
        seed: Decides that division.
        text_column: Name of the column, or key, of the texts.
        label_column: Name of the column, or key, of the labels.
        encoding: Of the files.
        max_length: Words of a text that are kept.
        min_count: Times that a word must occur in the training texts to be known.
        vocabulary: Of the network that the texts are for; None for that of the training texts.
        class_names: Of that network; None for those of the training texts.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If an option is out of range, a file is damaged, or a test text has a label that no training text
            has; the message names it.
    """
    columns = {"text_column": text_column, "label_column": label_column, "encoding": encoding}
    texts, labels = read_table(path, **columns)
    given = (texts, labels, str(path))
    beside = read_table(path, **columns, split="test") if test_path is None and huggingface.is_hub(path) else ([], [])
    if beside[0]:
        train, test = given, (*beside, str(path))
    elif test_path is None:
        parts = divide(labels, test_fraction, seed, str(path))
        taken = {name: ([texts[i] for i in chosen], [labels[i] for i in chosen]) for name, chosen in parts.items()}
        train, test = (*taken["train"], str(path)), (*taken["test"], str(path))
    else:
        train = given
        test = (*read_table(test_path, **columns), str(test_path)) if split == "test" else given
    if split not in ("train", "test"):
        raise ValueError(f"split: unknown name {split!r}; valid names are 'train', 'test'")
    names = class_names_of(train[1]) if class_names is None else tuple(class_names)
    known = Vocabulary.of(train[0], min_count=min_count) if vocabulary is None else vocabulary
    chosen, chosen_labels, source = train if split == "train" else test
    tokens = tuple(known.encode(text, max_length) for text in chosen)
    name = f"{Path(source).stem} {split}"
    return TextDataset(tokens, indices_of(chosen_labels, names, source), names, known, name)
