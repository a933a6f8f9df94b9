"""What commands check before they work for minutes."""

import os

import pytest

from dwsep.cli._console import check_writable


def test_check_writable_takes_what_can_be_made(tmp_path):
    (tmp_path / "old.json").write_text("{}")
    for path in (None, tmp_path / "new.json", tmp_path / "old.json", tmp_path / "some" / "new" / "folder" / "new.json"):
        check_writable("--json", path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.json"]


def test_check_writable_names_option_path_and_rule(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IsADirectoryError, match=f"--json: {tmp_path} is a folder, name a file in it"):
        check_writable("--json", tmp_path)
    with pytest.raises(NotADirectoryError, match=r"--html: .*/file/page.html cannot be written: .*/file is no folder"):
        check_writable("--html", tmp_path / "file" / "page.html")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="an administrator may write anywhere")
def test_check_writable_names_a_folder_that_is_locked(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="no permission to write in"):
        check_writable("--html", locked / "page.html")
