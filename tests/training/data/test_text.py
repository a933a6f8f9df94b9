"""Tables of texts: what is read, how it is split, and what is wrong with it."""

from __future__ import annotations

import json

import pytest
import torch

from dwsep.training.data import Normalisation
from dwsep.training.data.text import UNKNOWN, Vocabulary, load_text, read_table, read_texts, tokenize

ROWS = [("good film", "pos"), ("bad film, truly", "neg"), ('a "good" one', "pos"), ("it's bad", "neg")]


def write(path, rows=ROWS):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n\n" for text, label in rows))
    elif path.suffix == ".tsv":
        path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    else:
        quoted = [(text.replace('"', '""'), label) for text, label in rows]
        path.write_text("label,text\n" + "".join(f'{label},"{text}"\n' for text, label in quoted))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_read_table_reads_every_kind(tmp_path, suffix):
    path = write(tmp_path / f"data{suffix}")
    assert list(zip(*read_table(path), strict=True)) == ROWS
    assert read_texts(path) == [text for text, _ in ROWS]


def test_tokenize_splits_words_signs_and_scripts_without_spaces():
    assert tokenize("Don't STOP... 电影很好 ok1") == [
        "don't", "stop", ".", ".", ".", "电", "影", "很", "好", "ok1",
    ]  # fmt: skip
    assert tokenize(" \n") == []


def test_vocabulary_ranks_by_frequency_and_encodes():
    vocabulary = Vocabulary.of(["b b a", "a c b"], min_count=2)
    assert vocabulary.words == ("b", "a")
    assert vocabulary.encode("a b c").tolist() == [3, 2, UNKNOWN]
    assert vocabulary.encode("a b c", max_length=1).tolist() == [3]
    assert vocabulary.encode("").tolist() == [UNKNOWN]
    assert len(Vocabulary.of(["a b c d"], min_count=1, max_size=3)) == 3


def test_load_text_divides_one_file_and_knows_the_training_words_alone(tmp_path):
    path = write(tmp_path / "data.tsv", [(f"word{i} common", "ab"[i % 2]) for i in range(20)])
    train, test = (load_text(path, split, min_count=1) for split in ("train", "test"))
    assert (len(train), len(test)) == (16, 4)
    assert train.class_names == test.class_names == ("a", "b")
    assert train.class_counts() == [8, 8]
    assert test.vocabulary == train.vocabulary
    assert "common" in train.vocabulary.words
    assert len(train.vocabulary.words) == 17  # none of the test's
    assert load_text(path, "train", seed=1).digest() != train.digest()


def test_load_text_takes_a_second_file(tmp_path):
    path, other = write(tmp_path / "a.csv"), write(tmp_path / "b.csv", ROWS[:2])
    assert len(load_text(path, "train", test_path=other)) == 4
    assert len(load_text(path, "test", test_path=other)) == 2
    write(other, [("odd", "unsure")])
    with pytest.raises(
        ValueError, match=r"b\.csv: unknown label 'unsure'; the classes are 'neg', 'pos'; examples of it: 1 of 1"
    ):
        load_text(path, "test", test_path=other)


def test_a_batch_is_padded_to_its_longest_text(tmp_path):
    data = load_text(write(tmp_path / "a.csv"), "train", test_path=tmp_path / "a.csv", min_count=1)
    tokens, labels = data.batch(torch.tensor([0, 1]), Normalisation(), torch.contiguous_format)
    assert tokens.shape == (2, 4)
    assert tokens[0, 2:].tolist() == [0, 0]
    assert labels.tolist() == [1, 0]
    randoms = data.draw(torch.Generator().manual_seed(0))
    changed, _ = data.batch(slice(0, 4), Normalisation(), torch.contiguous_format, randoms, slice(0, 4))
    plain, _ = data.batch(slice(0, 4), Normalisation(), torch.contiguous_format)
    assert set(changed[changed != plain].tolist()) <= {UNKNOWN}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "x", r"a\.txt: unknown kind of file '\.txt'; known are \.csv, \.tsv, \.tab, \.jsonl"),
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\n", "is empty: it has no line with text and label"),
        ("a.csv", "text,mark\nx,1\n", "line 2: no column 'label', the columns are 'text', 'mark'"),
        ("a.tsv", "text\tlabel\nx\n", "line 2: nothing in the column 'label'"),
        ("a.tsv", "text\tlabel\nx\ty\tz\n", "line 2: more values than the 2 columns$"),
        ("a.csv", "text,label\nx,1\nno, not good,1\n", "line 3: more values than the 2 columns; a text with commas"),
        ("a.csv", 'text,label\n"x,1\n' + "y,1\n" * 40_000, "field larger than field limit .*; is a double quote not"),
        ("a.jsonl", '{"text": "x"}\n', "line 1: no column 'label', the columns are 'text'"),
        ("a.tsv", "text\tlabel\nx\t \n", "line 2: the label is empty"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": \n', "line 2: no JSON"),
        ("a.jsonl", "[1]\n", "line 1: must be a JSON object, got list"),
        ("a.csv", b"text,label\n\xe9,1\n", "is not in the encoding utf-8"),
    ],
)
def test_read_table_names_what_is_wrong(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_table(path)


def test_read_table_takes_an_encoding_and_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("body,mark\ncafé,1\n".encode("latin-1"))
    assert read_table(path, text_column="body", label_column="mark", encoding="latin-1") == (["café"], ["1"])
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "b.csv")


def test_a_class_of_one_text_cannot_be_divided(tmp_path):
    with pytest.raises(ValueError, match="class 'pos' has one example; it needs two"):
        load_text(write(tmp_path / "a.csv", [*ROWS[:2], ROWS[3]]), "train")
