import io
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from dwsep.cli import _demo_rows, _demo_run, _demo_training
from dwsep.cli._demo_output import print_results
from dwsep.cli._demo_state import UnfinishedRun
from dwsep.cli.main import app

OPTIONS = {"width_multiplier": 0.25, "stem": "small"}
THREADS = torch.get_num_threads()
KEYS = ["dense", "eager_nchw", "eager_nhwc", "dwsep"]


def demo(output_dir, *arguments):
    return CliRunner().invoke(app, ["demo", "--quick", "--output-dir", str(output_dir), *arguments])


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    finished = demo(folder, "--threads", "1")
    assert finished.exit_code == 0, finished.stderr
    return folder, finished, json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_demo_leaves_two_files_and_no_more(quick):
    folder, finished, _ = quick
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "results.json"]
    assert f"wrote {folder / 'report.html'}" in finished.stdout


def test_demo_trains_and_times_every_row_by_itself(quick):
    _, _, results = quick
    rows = {row["key"]: row for row in results["rows"]}
    assert list(rows) == KEYS
    for row in rows.values():
        assert [record["epoch"] for record in row["history"]] == [1]
        assert row["epoch_seconds"] == row["history"][0]["seconds"] > 0
        assert row["test_accuracy"] == row["history"][-1]["test_accuracy"]
        assert all(row["latency"][batch]["rounds"] == 3 for batch in ("1", "64"))
    measured = [rows[key]["latency"][batch]["median"] for key in KEYS for batch in ("1", "64")]
    assert len({row["epoch_seconds"] for row in rows.values()}) == 4
    assert len(set(measured)) == 8


def test_demo_starts_the_separable_rows_from_the_same_weights(quick):
    _, _, results = quick
    losses = [row["history"][0]["train_loss"] for row in results["rows"]]
    assert losses[1:] == pytest.approx([losses[1]] * 3, rel=0.02)  # rounding differs, and grows over the steps


def test_demo_counts_what_the_separation_saves(quick):
    _, _, results = quick
    dense, *separable = results["rows"]
    assert len({(row["parameters"], row["macs"], row["macs_spatial"]) for row in separable}) == 1
    assert results["promise"]["macs_ratio_spatial"] == dense["macs_spatial"] / separable[0]["macs_spatial"] > 7
    for entry, key in zip(results["promise"]["speedups"][1:], ["dwsep"], strict=True):
        row = next(row for row in results["rows"] if row["key"] == key)
        assert entry["training"] == dense["epoch_seconds"] / row["epoch_seconds"]


def test_demo_verifies_before_it_times(quick):
    _, _, results = quick
    verification = results["verification"]
    assert 0 <= verification["max_abs_difference"] <= verification["tolerance"] < 0.1


def test_demo_tells_machine_versions_and_command(quick):
    _, _, results = quick
    assert results["command"] == "dwsep demo --epochs 1 --seed 0 --threads 1 --quick"
    assert results["machine"]["torch_threads"] == 1
    assert results["machine"]["allocator"]
    assert results["machine"]["malloc_variables"] is not None
    assert results["versions"]["torch"]
    assert results["config"]["network_options"]["width_multiplier"] == 0.25
    assert torch.get_num_threads() == THREADS  # as before the demo


def test_demo_report_shows_the_strip_of_images(quick):
    folder, _, results = quick
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert len(results["strip"]) == page.count('<img src="data:image/png;base64,') == 24
    assert {prediction["key"] for item in results["strip"] for prediction in item["predictions"]} == {"dense", "dwsep"}


def test_demo_table_fits_eighty_columns_and_shows_the_results(quick):
    _, _, results = quick
    console = Console(width=80, record=True, file=io.StringIO())
    print_results(results, console)
    text = console.export_text()
    assert "…" not in text
    networks, _ = text.split("times faster")  # the second table has the same labels, and may have the same figure
    for row in results["rows"]:
        (line,) = [line for line in networks.splitlines() if line.strip().startswith(row["label"])]
        assert f"{row['epoch_seconds']:.2f}" in line
        assert f"{100 * row['test_accuracy']:.1f} %" in line
    machine = results["machine"]
    assert f"allocator {machine['allocator']}" in " ".join(text.split())
    assert ("note:" in text) == bool(results["disturbance"])
    assert re.search(rf"promised by macs, whole network( +{results['promise']['macs_ratio']:.1f}){{3}}", text)


def test_demo_continues_after_an_interrupt_with_the_same_result(tmp_path, monkeypatch):
    monkeypatch.setattr(_demo_run, "_QUICK", {**_demo_run._QUICK, "train_images": 128, "test_images": 64})
    assert demo(tmp_path / "whole", "--epochs", "2", "--threads", "1").exit_code == 0

    calls = []
    train_epoch = _demo_training._train_epoch

    def interrupted(row, *rest):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(row.key)
        return train_epoch(row, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(_demo_training, "_train_epoch", interrupted)
        stopped = demo(tmp_path / "parts", "--epochs", "2", "--threads", "1")
    assert stopped.exit_code == 130
    assert "run the same command again" in stopped.stderr
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["unfinished"]
    assert calls == [*KEYS, "dense"]

    going_on = demo(tmp_path / "parts", "--epochs", "2", "--threads", "1")
    assert going_on.exit_code == 0
    assert "going on from the run that was interrupted" in going_on.stderr
    whole, parts = (
        json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8")) for name in ("whole", "parts")
    )
    for one, other in zip(whole["rows"], parts["rows"], strict=True):
        for field in ("train_loss", "test_loss", "test_accuracy", "learning_rate"):
            assert [record[field] for record in one["history"]] == [record[field] for record in other["history"]]
    assert whole["strip"] == parts["strip"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_demo_refuses_bad_options_and_leaves_nothing(tmp_path, arguments, message):
    finished = demo(tmp_path / "out", *arguments)
    assert finished.exit_code == 2
    assert message in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_demo_refuses_an_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    finished = demo(tmp_path / "file")
    assert finished.exit_code == 2
    assert str(tmp_path / "file") in finished.stderr
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("package", "extra"), [("matplotlib", "report"), ("jinja2", "report")])
def test_demo_names_a_missing_package_before_it_trains(tmp_path, monkeypatch, package, extra):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    finished = demo(tmp_path / "out")
    assert finished.exit_code == 2
    assert f"dwsep[{extra}]" in finished.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def twins():
    ours = _demo_rows.build(_demo_rows.ROWS[-1], num_classes=10, in_channels=1, options=OPTIONS, seed=0).eval()
    plain = _demo_rows.as_plain(ours, num_classes=10, in_channels=1, options=OPTIONS).eval()
    return ours, plain


def test_verify_accepts_the_same_weights(twins):
    outcome = _demo_rows.verify(*twins, torch.randn(4, 1, 28, 28))
    assert outcome["max_abs_difference"] <= outcome["tolerance"]


@pytest.mark.parametrize("value", [0.01, math.nan, math.inf])
def test_verify_refuses_a_wrong_output(twins, value):
    ours, plain = twins
    with torch.no_grad():
        ours.classifier.bias[3] += value
    with pytest.raises(RuntimeError, match=r"differ by .* on the same weights"):
        _demo_rows.verify(ours, plain, torch.randn(4, 1, 28, 28))


@pytest.mark.parametrize("row", _demo_rows.ROWS, ids=lambda row: row.key)
def test_build_gives_the_network_of_the_row(row):
    model = _demo_rows.build(row, num_classes=10, in_channels=1, options=OPTIONS, seed=3)
    modules = {type(module).__module__ for module in model.modules()}
    assert ("dwsep.nn._separable" in modules) == (row.key == "dwsep")
    weight = model.stem.conv.weight
    last = model.get_parameter(
        "blocks.12.pointwise.weight" if row.network == "mobilenet_v1" else "blocks.12.conv.weight"
    )
    assert last.is_contiguous(memory_format=_demo_rows.torch_format(row.memory_format))
    same = _demo_rows.build(replace(row), num_classes=10, in_channels=1, options=OPTIONS, seed=3)
    other = _demo_rows.build(row, num_classes=10, in_channels=1, options=OPTIONS, seed=4)
    assert torch.equal(weight, same.stem.conv.weight)
    assert not torch.equal(weight, other.stem.conv.weight)


def test_build_starts_the_separable_rows_from_the_same_weights():
    states = [
        _demo_rows.build(row, num_classes=10, in_channels=1, options=OPTIONS, seed=3).state_dict()
        for row in _demo_rows.ROWS[1:]
    ]
    assert all(list(state) == list(states[0]) for state in states)
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in state)


def test_unfinished_run_continues_only_the_same_run(tmp_path):
    first = UnfinishedRun(tmp_path, {"seed": 0, "pair": (1, 2)})
    assert not first.continued
    (first.row_folder("dense")).mkdir()
    assert UnfinishedRun(tmp_path, {"seed": 0, "pair": (1, 2)}).continued
    assert first.row_folder("dense").exists()
    assert not UnfinishedRun(tmp_path, {"seed": 1, "pair": (1, 2)}).continued
    assert not first.row_folder("dense").exists()


def test_unfinished_run_begins_anew_on_request(tmp_path):
    UnfinishedRun(tmp_path, {"seed": 0}).row_folder("dense").mkdir()
    run = UnfinishedRun(tmp_path, {"seed": 0}, fresh=True)
    assert not run.continued
    assert not run.row_folder("dense").exists()


def test_unfinished_run_adds_up_the_time_of_all_sessions(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    first = UnfinishedRun(tmp_path, {})
    now[0] += 7
    first.save()
    now[0] += 1000
    second = UnfinishedRun(tmp_path, {})
    now[0] += 5
    assert second.seconds == 12


def test_unfinished_run_begins_anew_where_its_state_is_damaged(tmp_path):
    run = UnfinishedRun(tmp_path, {})
    (run.folder / "state.json").write_text('{"fingerprint": ')
    assert not UnfinishedRun(tmp_path, {}).continued


def test_unfinished_run_leaves_a_folder_of_somebody_else_alone(tmp_path):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "novel.txt").write_text("chapter 1")
    with pytest.raises(FileExistsError, match="unfinished is in the way"):
        UnfinishedRun(tmp_path, {})
    assert (tmp_path / "unfinished" / "novel.txt").exists()
