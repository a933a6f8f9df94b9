"""The log survives crashes and resumption."""

from __future__ import annotations

import json
import sys
import types

import pytest

from dwsep.training.log import RunLog, Scalars, read_log, versions


def test_run_log_appends_one_object_per_line(tmp_path):
    log = RunLog(tmp_path / "run" / "log.jsonl")
    log.write("header", config={"epochs": 2})
    log.write("epoch", epoch=1)
    lines = log.path.read_text().splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["header", "epoch"]
    assert all("time" in json.loads(line) for line in lines)
    assert read_log(log.path)[0]["config"] == {"epochs": 2}


def test_run_log_starts_anew_without_history(tmp_path):
    path = tmp_path / "log.jsonl"
    RunLog(path).write("epoch", epoch=1)
    RunLog(path).write("header")
    assert [record["type"] for record in read_log(path)] == ["header"]


def test_read_log_leaves_out_a_line_cut_short(tmp_path):
    path = tmp_path / "log.jsonl"
    log = RunLog(path)
    log.write("header")
    log.write("epoch", epoch=1)
    path.write_text(path.read_text()[:-5])
    assert [record["type"] for record in read_log(path)] == ["header"]
    assert read_log(tmp_path / "nowhere") == []


def test_run_log_agrees_with_the_checkpoint_it_goes_on_from(tmp_path):
    path = tmp_path / "log.jsonl"
    log = RunLog(path)
    log.write("header")
    log.write("epoch", epoch=1, train_loss=0.5)
    log.write("epoch", epoch=3, train_loss=0.1)
    RunLog(path, [{"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": 0.3}])
    epochs = [(r["epoch"], r["train_loss"]) for r in read_log(path) if r["type"] == "epoch"]
    assert epochs == [(1, 0.5), (2, 0.3)]
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_versions_names_what_a_result_depends_on():
    assert versions().keys() >= {"python", "torch", "numpy", "dwsep", "platform"}


def test_scalars_are_written_by_name_and_epoch(monkeypatch, tmp_path):
    written = []

    class Writer:
        def __init__(self, folder):
            assert folder == str(tmp_path)

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            pass

        close = flush

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    scalars = Scalars(tmp_path)
    scalars.write(3, {"epoch": 3, "loss": 0.5, "metrics": {"iou": 0.25, "class_iou": {"a": None, "b": 1.0}}})
    scalars.close()
    assert written == [("loss", 0.5, 3), ("metrics/iou", 0.25, 3), ("metrics/class_iou/b", 1.0, 3)]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "dwsep\[tensorboard\]"'):
        Scalars(tmp_path)
