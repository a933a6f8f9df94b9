import os

import pytest

from dwsep.analysis._files import write_text_atomically


def test_write_text_atomically_replaces_the_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_text_atomically(path, "old")
    write_text_atomically(path, "né")
    assert path.read_text(encoding="utf-8") == "né"
    assert os.listdir(path.parent) == ["file.txt"]


def test_write_text_atomically_keeps_the_old_file_where_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_text_atomically(path, "old")

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]
