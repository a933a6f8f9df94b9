"""Tables as text and as HTML."""

from __future__ import annotations

import doctest

from dwsep import tables


def test_examples_run():
    assert doctest.testmod(tables).failed == 0


def test_columns_are_as_wide_as_their_widest_cell():
    lines = tables.text_table([("a", "bb", "c"), ("long", "", "1")], right=(2,)).splitlines()
    assert lines == ["a     bb  c", "long      1"]


def test_html_is_escaped():
    page = tables.html_table([("<b>",), ("&",)], "a < b")
    assert page == "<p>a &lt; b</p><table><tr><th>&lt;b&gt;</th></tr><tr><td>&amp;</td></tr></table>"
