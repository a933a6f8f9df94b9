"""The page of a cost report, as text and in a real browser."""

import itertools
import re

import pytest
import torch
from torch import nn

import dwsep
from tests.analysis.browser import DESKTOP, EXECUTABLE, PHONE, Browser

pytest.importorskip("matplotlib", reason="the extra report is not installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    layer = {"norm": "batch", "activation": "relu"}
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), dwsep.nn.DepthwiseSeparableConv2d(8, 16, dilation=2, **layer)
    ).eval()
    report = dwsep.analyze(model, torch.randn(1, 3, 40, 40), seconds=0, name="a <network>")
    path = folder / "report.html"
    report.save(path)
    report.save(folder / "both.html", against=report)
    patch.undo()
    return path, report


@pytest.mark.parametrize("name", ["report.html", "both.html"])
def test_page_shows_every_row_and_needs_nothing_else(page, name):
    path, report = page
    path = path.with_name(name)
    text = path.read_text(encoding="utf-8")
    assert "a &lt;network&gt;" in text
    tables = 1 if name == "report.html" else 2
    assert all(text.count(f'<th scope="row" data-value="{row.name}"') == tables for row in report.rows)
    assert text.count("<svg") == (4 if tables == 1 else 2 + 2 * 4)
    assert "http:" not in text
    assert "https:" not in text
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)


def test_page_without_times_has_no_times(tmp_path):
    path = tmp_path / "report.html"
    dwsep.analyze(nn.Conv2d(3, 8, 3), torch.randn(1, 3, 9, 9), latency=False).save(path)
    text = path.read_text(encoding="utf-8")
    assert text.count("<svg") == 1
    assert "floor ms" not in text


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium is installed")
def test_page_in_a_browser(page):
    path, report = page
    count = len(report.rows) + 1  # and what lies between them
    with Browser() as browser:
        for shown, screen in itertools.product((path.with_name("both.html"), path), (DESKTOP, PHONE)):
            colours = set()
            for scheme in ("light", "dark"):
                browser.show(shown, screen, scheme)
                faults = [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
                assert not faults
                asked = [e["params"]["request"]["url"] for e in browser.events if "request" in e.get("params", {})]
                assert all(url.startswith("file:") for url in asked)
                # nothing is wider than the screen, and every chart is seen
                assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
                sizes = "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)"
                assert min(browser.evaluate(sizes)) > 250
                colours.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert len(colours) == 2
        order = "[...document.querySelectorAll('#layers tbody td:first-child')].map(c => Number(c.dataset.value))"
        assert browser.evaluate(order) == list(range(1, count + 1))
        browser.show(path, DESKTOP, "light")
        heads = "[...document.querySelectorAll('#layers thead button')]"
        browser.evaluate(f"{heads}.find(b => b.textContent.trim() === 'macs').click()")
        by_macs = sorted(range(1, count), key=lambda number: -report.rows[number - 1].macs)
        assert browser.evaluate(order)[0] == by_macs[0]
        browser.evaluate(f"{heads}.find(b => b.textContent.trim() === 'macs').click()")
        assert browser.evaluate(order)[-1] == by_macs[0]
