import json
from dataclasses import replace

import pytest

from dwsep.bench import results
from dwsep.bench.registry import SEPARABLE, Task
from tests.bench.toys import CEILINGS, TINY, TINY_DEPTHWISE, TINY_DILATED, make_record, make_results

FAILED = {"status": "failed", "reason": "KeyError: x"}


def test_derive_compares_with_the_best_peer_the_better_layout_and_the_compiled_network():
    times = {"dwsep": 2.0, "nchw": 6.0, "channels_last": 5.0, "compile": 3.0, "openvino": 1.0}
    derived = make_record(times)["derived"]
    assert derived["best_peer"] == "openvino"
    assert derived["ratios"] == {"best": 0.5, "eager": 2.5, "compile": 1.5}
    assert derived["share_of_floor"] == derived["floor_seconds"] / 2.0


@pytest.mark.parametrize(
    ("times", "ratios"),
    [
        ({"nchw": 1.0}, {"best": None, "eager": None, "compile": None}),
        ({"dwsep": 1.0}, {"best": None, "eager": None, "compile": None}),
        ({"dwsep": 1.0, "nchw": 3.0}, {"best": 3.0, "eager": 3.0, "compile": None}),
        ({}, {"best": None, "eager": None, "compile": None}),
    ],
)
def test_derive_does_without_what_was_not_timed(times, ratios):
    derived = make_record(times, openvino=FAILED)["derived"]
    assert derived["ratios"] == ratios
    assert (derived["share_of_floor"] is None) == ("dwsep" not in times)


def test_summarise_takes_the_geometric_mean_and_the_minimum_of_each_group():
    records = [
        make_record({"dwsep": 1.0, "nchw": 2.0}, Task(TINY)),
        make_record({"dwsep": 1.0, "nchw": 8.0}, Task(TINY_DILATED)),
        make_record({"dwsep": 1.0, "nchw": 3.0}, Task(TINY), "raised"),
        make_record({"nchw": 3.0}, Task(TINY, "norm")),
    ]
    rows = {row["title"]: row for row in results.summarise(records)}
    # TINY has batch 2, TINY_DILATED batch 1
    assert len(rows) == 4
    same_batch = [make_record({"dwsep": 1.0, "nchw": n}, Task(TINY)) for n in (2.0, 8.0)]
    same_batch[1]["task"]["case"]["name"] = "other"
    (row,) = results.summarise(same_batch)
    assert row["title"] == "separable bare, inference, batch 2, float32, allocator default"
    assert row["best"] == {"geomean": pytest.approx(4.0), "minimum": 2.0, "slowest": "tiny"}
    assert row["compile"] is None
    assert row["cases"] == 2


def test_group_puts_depthwise_cases_of_any_batch_together():
    records = [make_record({"dwsep": 1.0}, Task(TINY_DEPTHWISE)), make_record({"dwsep": 1.0})]
    keys = list(results.group([*records, make_record({"dwsep": 1.0}, Task(TINY), "raised")]))
    assert [(key[2], key[4], key[5]) for key in keys] == [
        ("separable", 2, "default"),
        ("separable", 2, "raised"),
        ("depthwise", None, "default"),
    ]


def test_group_keeps_the_order_of_the_registry_after_a_resume():
    first, last = (replace(case, batch=2) for case in (SEPARABLE[0], SEPARABLE[-1]))
    records = [make_record({"dwsep": 1.0}, Task(case)) for case in (TINY, last, first)]
    ((_, members),) = results.group(records).items()
    assert [record["task"]["case"]["name"] for record in members] == [first.name, last.name, "tiny"]


def test_notes_say_once_what_concerns_many():
    records = [make_record({"dwsep": 1.0}, Task(case), openvino=FAILED) for case in (TINY, TINY_DILATED)]
    records.append(make_record({"dwsep": 1.0}, compile={"status": "wrong", "reason": "3 elements"}))
    assert results.notes(records) == [
        "openvino failed (2 cases): KeyError: x",
        "compile wrong (tiny): 3 elements",
    ]


def test_save_and_load(tmp_path):
    path = tmp_path / "new" / "results.json"
    saved = make_results([make_record({"dwsep": 1.0, "nchw": 2.0})])
    results.save(saved, path)
    assert results.load(path) == json.loads(json.dumps(saved))
    assert results.derive(saved["records"][0], CEILINGS) == saved["records"][0]["derived"]


def test_load_takes_a_file_that_does_not_say_its_subject_for_layers(tmp_path):
    path = tmp_path / "results.json"
    saved = make_results([])
    del saved["subject"]
    results.save(saved, path)
    assert results.load(path)["subject"] == "layers"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 2, "records": []}'])
def test_load_refuses_other_files(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="holds no results of dwsep bench"):
        results.load(path)
