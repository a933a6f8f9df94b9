"""Tables, page and plot, from records that nothing measured."""

import io

import pytest
from rich.console import Console

from dwsep.bench.markdown import disturbance, render_markdown
from dwsep.bench.registry import Task
from dwsep.bench.roofline import write_roofline
from dwsep.bench.tables import format_seconds, result_tables, summary_table
from dwsep.cli._bench_output import print_results
from tests.bench.toys import TINY, TINY_DEPTHWISE, make_network_record, make_record, make_results

WRONG = {"status": "wrong", "reason": "3 of 5 elements of y are wrong"}
ABSENT = {"status": "unavailable", "reason": "onnxruntime runs inference only"}


@pytest.fixture
def records():
    times = {"dwsep": 0.001, "nchw": 0.0025, "channels_last": 0.002}
    return [
        make_record(times, onnxruntime=ABSENT),
        make_record(times, Task(TINY, "norm"), compile=WRONG),
        make_record({"dwsep": 0.004, "nchw": 0.003}, Task(TINY_DEPTHWISE), openvino=ABSENT),
    ]


def test_result_tables_show_times_ratios_and_share(records):
    bare, norm, depthwise = result_tables(records)
    assert bare.title == "separable bare, inference, batch 2, float32, allocator default"
    assert bare.headings == ("layer", "dwsep", "NCHW", "NHWC", "x best", "x eager", "floor")
    assert bare.rows == (("tiny", "1.00", "2.50", "2.00", "2.00", "2.00", "0 %"),)
    assert bare.best == (3,)
    assert norm.headings[4] == "compile"
    assert norm.rows[0][4] == "wrong"
    assert depthwise.rows == (("tiny-depthwise b1", "4.00", "3.00", "0.75", "0.75", "0 %"),)


def test_result_tables_can_do_with_the_ratio_to_the_best(records):
    assert "x eager" not in result_tables(records, all_ratios=False)[0].headings


def test_summary_table_has_a_row_for_each_table(records):
    summary = summary_table(records)
    assert summary.headings == ("", "cases", "x best", "min", "x eager", "min", "slowest case", "floor")
    assert [row[2] for row in summary.rows] == ["2.00", "2.00", "0.75"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_titles_of_the_summary_are_whole_at_any_width(records, width):
    records.append(make_record({"dwsep": 1.0, "nchw": 2.0, "compile": 2.0}, Task(TINY, training=True)))
    console = Console(width=width, record=True, file=io.StringIO())
    print_results(make_results(records), console)
    lines = console.export_text().split("times faster than")[1].splitlines()
    for title, *_ in summary_table(records).rows:
        assert title in " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= width


def test_names_of_networks_are_whole_in_eighty_columns():
    times = dict.fromkeys(("dwsep", "nchw", "channels_last", "compile", "onnxruntime", "openvino"), 0.0123)
    record = make_network_record(times, "mobilenetv3_large_100")
    console = Console(width=80, record=True, file=io.StringIO())
    print_results(make_results([record], "networks"), console)
    (line,) = [line for line in console.export_text().splitlines() if line.count("12.3") == len(times)]
    assert line.startswith("mobilenetv3_large_100@224 ")


def test_tables_of_what_nobody_could_run():
    record = make_record({}, dwsep={"status": "failed", "reason": "x"})
    (table,) = result_tables([record])
    assert table.rows == (("tiny", "failed", "-"),)
    assert summary_table([record]).rows[0][-2:] == ("-", "-")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0000123, "0.012"), (0.00123, "1.23"), (0.0123, "12.3"), (0.123, "123")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_markdown_says_what_machine_and_what_was_not_timed(records):
    page = render_markdown(make_results(records))
    assert "`dwsep bench layers`" in page
    assert "a CPU, 2 cores, 2 threads" in page
    assert "multiply-add peak 400 GFLOP/s (avx2)" in page
    assert "| tiny | 1.00 | 2.50 | **2.00** | 2.00 | 2.00 | 0 % |" in page
    assert "- compile wrong (tiny): 3 of 5 elements of y are wrong" in page
    assert page.count("\n## ") == 1 + 3 + 1
    assert "disturbance" not in page


def test_disturbance_is_the_worst_of_all_comparisons(records):
    results = make_results(records)
    assert disturbance(results) is None
    records[1]["other_cores"] = 1.5
    assert "1.5 of 2 cores" in str(disturbance(results))
    records[1]["other_cores"] = None
    assert disturbance(results) is None


def test_roofline_is_a_png(records, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    path = tmp_path / "new" / "roofline.png"
    lone = make_record({"dwsep": 0.001})
    lone["task"]["case"]["name"] = "alone"
    write_roofline(make_results([*records, lone]), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(path.parent.iterdir()) == [path]


def test_roofline_needs_something_to_show(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    with pytest.raises(ValueError, match="nothing was timed"):
        write_roofline(make_results([make_record({"nchw": 1.0})]), tmp_path / "plot.png")
