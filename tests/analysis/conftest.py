"""This machine's ceilings are measured once for all tests of the room, and the user's file of them is left alone."""

import pytest


@pytest.fixture(scope="session")
def _folder_of_ceilings(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def own_ceilings(monkeypatch, _folder_of_ceilings):
    monkeypatch.setenv("XDG_CACHE_HOME", str(_folder_of_ceilings))
