import json
import re

import pytest

from dwsep.analysis.promise import summarise_promise
from dwsep.analysis.report import (
    format_count,
    format_duration,
    format_milliseconds,
    format_percent,
    render_demo_report,
    write_demo_report,
)

ROWS = (
    ("dense", "dense", "dense, PyTorch", 8.0, 40.0, 9.0),
    ("eager_contiguous", "eager", "separable, PyTorch NCHW", 5.0, 10.0, 4.0),
    ("eager_channels_last", "eager", "separable, PyTorch NHWC", 4.0, 20.0, 3.0),
    ("dwsep", "dwsep", "separable, dwsep", 2.0, 5.0, 1.5),
)
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def make_row(key, group, label, epoch_seconds, batch_1, batch_64):
    history = [{"epoch": epoch, "test_accuracy": 0.4 + epoch / 10} for epoch in (1, 2, 3)]
    latency = {"1": {"median": batch_1 / 1000}, "64": {"median": batch_64 / 1000}}
    dense = group == "dense"
    return {
        "key": key,
        "group": group,
        "label": label,
        "parameters": 28_300_000 if dense else 3_220_000,
        "macs": 900 if dense else 100,
        "macs_spatial": 880 if dense else 80,
        "test_accuracy": 0.7,
        "epoch_seconds": epoch_seconds,
        "history": history,
        "latency": latency,
    }


@pytest.fixture
def results():
    rows = [make_row(*row) for row in ROWS]
    predictions = [
        {"key": "dense", "name": "dense", "class_name": "Bag"},
        {"key": "dwsep", "name": "dwsep", "class_name": "<b>Shirt</b>"},
    ]
    return {
        "command": "dwsep demo --epochs 3",
        "created": "2025-01-02T03:04:05+00:00",
        "config": {"epochs": 3, "seed": 0, "network_options": {"stem": "small"}, "quick": False},
        "machine": {
            "cpu": "Example CPU",
            "architecture": "x86_64",
            "system": "Linux",
            "logical_cores": 4,
            "usable_cores": 2,
            "torch_threads": 2,
            "torch_cpu_capability": "AVX2",
            "glibc": "2.36",
            "allocator": "glibc",
            "allocator_settings": {},
            "malloc_variables": {},
            "dwsep_isa": "avx2",
            "dwsep_native": "loaded",
        },
        "versions": {"python": "3.11", "torch": "2.14"},
        "data": {"name": "example", "train_images": 10_000, "test_images": 2_000},
        "rows": rows,
        "promise": summarise_promise(rows),
        "verification": {"max_abs_difference": 1.5e-6, "tolerance": 1e-3},
        "other_processes_cores": 0.1,
        "disturbance": None,
        "strip": [{"index": 0, "label": "Bag", "image": PIXEL, "predictions": predictions}],
        "wall_seconds": 134.2,
    }


def test_write_demo_report_shows_every_row_and_number(results, tmp_path):
    path = tmp_path / "new" / "report.html"
    write_demo_report(results, path)
    page = path.read_text(encoding="utf-8")
    for row in results["rows"]:
        assert page.count(row["label"]) >= 1
        assert f"{row['epoch_seconds']:.2f}" in page
    assert "28.3 M" in page
    assert "3.22 M" in page
    assert "9.0 times fewer multiply-adds" in page
    assert "11.0 times fewer" in page
    assert "10,000 images" in page
    assert "2 min 14 s" in page
    assert "Example CPU" in page
    assert "2025-01-02 03:04 UTC" in page
    assert "stem=small" in page
    assert page.count("<svg") == 2
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_render_demo_report_says_that_a_quick_run_shows_nothing(results):
    assert "A quick run" not in render_demo_report(results)
    results["config"]["quick"] = True
    assert "A quick run" in render_demo_report(results)


def test_render_demo_report_tells_what_disturbed_the_measurement(results):
    assert "Note:" not in render_demo_report(results)
    results["disturbance"] = "somebody compiled <meanwhile>"
    assert "Note: somebody compiled &lt;meanwhile&gt;." in render_demo_report(results)


def test_render_demo_report_tells_the_allocator_and_what_steers_it(results):
    assert "<dd>glibc, its defaults</dd>" in render_demo_report(results)
    results["machine"]["allocator_settings"] = {"M_MMAP_MAX": 0}
    assert "<dd>glibc, keeping freed memory</dd>" in render_demo_report(results)
    results["machine"]["allocator_settings"] = {}
    results["machine"]["malloc_variables"] = {"MALLOC_ARENA_MAX": "2", "LD_PRELOAD": "libx.so"}
    assert "<dd>glibc, MALLOC_ARENA_MAX=2, LD_PRELOAD=libx.so</dd>" in render_demo_report(results)


def test_write_demo_report_needs_only_the_json_file(results, tmp_path):
    write_demo_report(json.loads(json.dumps(results)), tmp_path / "a.html")
    write_demo_report(results, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_render_demo_report_makes_no_request(results):
    page = render_demo_report(results)
    assert "http:" not in page
    assert "https:" not in page
    assert "//" not in re.sub(r"base64,[^\"]*", "", page)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)


def test_render_demo_report_has_unique_ids_that_all_references_meet(results):
    page = render_demo_report(results)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', page)) | set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)


def test_render_demo_report_leaves_chart_colours_to_the_page(results):
    charts = "".join(re.findall(r"<svg.*?</svg>", render_demo_report(results), re.DOTALL))
    assert "currentColor" in charts
    assert "var(--series-4)" in charts
    assert re.findall(r"#[0-9a-f]{6}\b", charts) == []


def test_render_demo_report_marks_right_and_wrong_and_escapes(results):
    page = render_demo_report(results)
    assert '<div class="right">✓ dense: Bag</div>' in page
    assert '<div class="wrong">✗ dwsep: &lt;b&gt;Shirt&lt;/b&gt;</div>' in page


@pytest.mark.parametrize("entry", ["rows", "promise", "machine", "strip", "verification"])
def test_write_demo_report_names_a_missing_entry_and_writes_nothing(results, tmp_path, entry):
    del results[entry]
    with pytest.raises(ValueError, match=entry):
        write_demo_report(results, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_write_demo_report_names_the_extra_where_a_package_is_missing(results, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"dwsep\[report\]"):
        write_demo_report(results, tmp_path / "report.html")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_count(999), "999"),
        (format_count(4_231_976), "4.23 M"),
        (format_count(568_740_352), "569 M"),
        (format_count(12_345), "12.3 k"),
        (format_count(999_900), "1 M"),
        (format_count(1_234_567_000_000), "1230 G"),
        (format_percent(0.9126), "91.3 %"),
        (format_milliseconds(0.00123), "1.23"),
        (format_milliseconds(0.0456), "45.6"),
        (format_milliseconds(0.789), "789"),
        (format_duration(12.34), "12.3 s"),
        (format_duration(119.7), "2 min 0 s"),
    ],
)
def test_format_is_short_and_exact(text, expected):
    assert text == expected
