"""Files that hold no weights are refused in words, and no code of theirs is run."""

import pickle

import pytest
import torch
from torch import nn

from dwsep.weights import read


def test_read_takes_a_state_dict_under_the_names_that_trainers_use(tmp_path):
    state = nn.Linear(2, 3).state_dict()
    for content in (state, {"state_dict": state, "epoch": 3}, {"model": state}):
        torch.save(content, tmp_path / "weights.pth")
        assert torch.equal(read(tmp_path / "weights.pth").tensors["weight"], state["weight"])


@pytest.mark.parametrize("content", [b"hello", b"", b"PK\x03\x04 no archive", pickle.dumps(nn.Linear(2, 3))])
def test_read_refuses_a_file_that_holds_other_things(tmp_path, content):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"weights\.pth is damaged, or holds more than tensors, .*state_dict\(\), path"
    ):
        read(tmp_path / "weights.pth")


def test_read_refuses_a_whole_model(tmp_path):
    torch.save(nn.Linear(2, 3), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt is damaged, or holds more than tensors"):
        read(tmp_path / "model.pt")


@pytest.mark.parametrize("content, message", [([1, 2], "no state dict but a list"), ({"epoch": 3}, "holds no tensors")])
def test_read_refuses_what_has_no_tensors(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "weights.pth")
