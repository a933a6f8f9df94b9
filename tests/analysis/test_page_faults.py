"""What a run pays for memory that it gives back and takes anew."""

import dataclasses
import mmap

import pytest
import torch
from torch import nn

import dwsep
from dwsep.analysis import _page_faults

pytestmark = pytest.mark.usefixtures("own_ceilings")


class Forgetful(nn.Module):
    """Maps fresh memory in every run, as an allocator does that keeps none."""

    pages = 4000

    def forward(self, x):
        with mmap.mmap(-1, self.pages * mmap.PAGESIZE) as block:
            for offset in range(0, len(block), mmap.PAGESIZE):
                block[offset] = 1
        return x + 1


def test_a_page_costs_more_to_write_the_first_time():
    before = _page_faults.count_page_faults()
    if before is None:
        pytest.skip("this system does not count page faults")
    assert max(_page_faults.seconds_of_page_fault() for _ in range(3)) > 0
    assert _page_faults.count_page_faults() > before


def test_a_run_that_takes_memory_anew_is_told_so():
    if _page_faults.count_page_faults() is None:
        pytest.skip("this system does not count page faults")
    report = dwsep.analyze(Forgetful(), torch.ones(1, 3), advice=False, seconds=0)
    assert report.page_faults >= Forgetful.pages / 512  # as few as there are huge pages
    assert report.to_dict()["page_faults"] == report.page_faults
    loud = dataclasses.replace(report, fault_seconds=report.latency.median / report.page_faults)
    silent = dataclasses.replace(report, fault_seconds=0.01 * loud.fault_seconds)
    for shown in (str, lambda one: one._repr_html_()):
        assert f"a run takes {report.page_faults:,.0f} page faults" in shown(loud)
        assert "page faults" not in shown(silent)


def test_the_sentence_names_a_way_out_where_there_is_one(monkeypatch):
    monkeypatch.setattr(_page_faults, "allocator_name", lambda: "glibc")
    text = str(_page_faults.describe_page_faults(3000, 1e-6, 0.02))
    assert "3,000 page faults, of 1.0 µs each" in text
    assert "keep_freed_memory()" in text
    monkeypatch.setattr(_page_faults, "allocator_name", lambda: "tcmalloc")
    text = str(_page_faults.describe_page_faults(3000, 1e-6, 0.02))
    assert "3,000" in text
    assert "keep_freed_memory" not in text
    assert _page_faults.describe_page_faults(3000, 1e-6, 0.2) is None


def test_nothing_is_said_where_nothing_was_timed():
    report = dwsep.analyze(Forgetful(), torch.ones(1, 3), latency=False)
    assert (report.page_faults, report.fault_seconds) == (None, None)
