"""Files of text: the mark before UTF-8, and errors that name the file."""

from __future__ import annotations

import pytest

from dwsep.training.config import read_yaml
from dwsep.training.data.files import read_file
from dwsep.training.data.masks import read_classes
from dwsep.training.data.text import read_table


def test_read_file_leaves_out_the_mark_before_utf_8(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\r\ncafé,1\r\n", encoding="utf-8-sig", newline="")
    assert read_file(path) == "text,label\r\ncafé,1\r\n"
    assert read_table(path) == (["café"], ["1"])
    assert read_file(path, "latin-1").startswith("ï»¿text")


@pytest.mark.parametrize("read", [read_file, read_table, read_classes, read_yaml])
def test_a_file_in_another_encoding_is_named(tmp_path, read):
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    path = tmp_path / "a.csv"
    path.write_bytes(b"caf\xe9,1\n")
    with pytest.raises(ValueError, match=r"a\.csv is not in the encoding utf-8: .* byte 0xe9"):
        read(path)


def test_read_file_names_an_unknown_encoding(tmp_path):
    with pytest.raises(ValueError, match="encoding: unknown name 'latin-one'"):
        read_file(tmp_path / "a.csv", "latin-one")
