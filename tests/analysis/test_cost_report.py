"""A report as table, data and notebook."""

import json

import pytest
import torch
from torch import nn

import dwsep
from tests.analysis.toys import names, network

pytestmark = pytest.mark.usefixtures("own_ceilings")


def test_report_as_table_data_and_notebook():
    report = dwsep.analyze(network(), torch.randn(2, 3, 32, 32), seconds=0)
    text = str(report)
    assert all(name in text for name in names(report))
    assert "sum of the lines" in text
    assert "whole network measured apart" in text
    data = json.loads(json.dumps(report.to_dict()))
    assert data["totals"]["macs"] == report.macs
    assert [row["name"] for row in data["rows"]] == names(report)
    assert report._repr_html_().count("<tr>") == len(report.rows) + 3  # a head, what lies between, and the sum
    blocks = report.table(sort="order", depth=1, most=3)
    assert [*blocks.columns[0].cells] == ["0", "1", "2", "1 more", "between the layers"]
    assert report.seconds == report.between.median + sum(row.latency.median for row in report.rows)
    assert data["totals"]["seconds_of_parts"] == report.seconds


@pytest.mark.parametrize("latency", [False, True])
def test_report_of_a_network_that_does_nothing_says_so(latency, tmp_path):
    report = dwsep.analyze(nn.Sequential(), torch.ones(1, 3), latency=latency, seconds=0)
    assert (report.rows, report.macs, report.floor) == ((), 0, None)
    assert "the network runs no operator that computes anything" in str(report)
    assert "no floors" not in str(report)
    json.dumps(report.to_dict())
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    report.save(tmp_path / "report.html")
    assert "computes anything" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_to_pandas_has_a_line_for_each_row_or_names_what_is_missing(monkeypatch):
    report = dwsep.analyze(network(), torch.randn(2, 3, 32, 32), latency=False)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        report.to_pandas()


def test_report_refuses_bad_arguments(tmp_path):
    report = dwsep.analyze(nn.ReLU(), torch.ones(1), latency=False)
    with pytest.raises(ValueError, match="sort: unknown name 'size'"):
        report.table(sort="size")
    with pytest.raises(ValueError, match=r"path must end in \.html or \.json"):
        report.save(tmp_path / "report.pdf")
    assert list(tmp_path.iterdir()) == []
