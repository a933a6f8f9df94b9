"""The page that ``dwsep demo`` leaves: one HTML file with everything in it, rendered from the results alone."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dwsep.analysis._files import write_text_atomically


def write_demo_report(results: Mapping[str, Any], path: str | Path) -> None:
    """Writes the results of a demo as one self-contained HTML page.

    The page makes no request: style, charts (SVG) and images are part of it. Charts follow the colours of the page, so
    that it can be read on light and dark screens, and on a phone.

    Args:
        results: What ``dwsep demo`` writes to ``results.json``.
        path: File to write; it is replaced as a whole or not at all.

    Raises:
        ImportError: jinja2 or matplotlib is missing (extra "report").
        ValueError: ``results`` lacks an entry that the page shows.
    """
    page = render_demo_report(results)
    write_text_atomically(path, page)


def render_demo_report(results: Mapping[str, Any]) -> str:
    """Renders the results of a demo as HTML; see :func:`write_demo_report`."""
    require_report_packages()
    import jinja2

    from dwsep.analysis import _charts

    source = importlib.resources.files("dwsep.analysis").joinpath("templates/demo.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        count=format_count,
        percent=format_percent,
        milliseconds=format_milliseconds,
        duration=format_duration,
        allocator=format_allocator,
    )
    try:
        return environment.from_string(source).render(
            results=results,
            accuracy_chart=_charts.accuracy_chart(results["rows"]),
            speedup_chart=_charts.speedup_chart(results["promise"]),
        )
    except (KeyError, jinja2.UndefinedError) as error:
        raise ValueError(f"results lacks an entry that the report shows: {error}") from error


def require_report_packages() -> None:
    """Makes sure that a report can be written, so that a long run can fail before it starts instead of at its end.

    Raises:
        ImportError: jinja2 or matplotlib is missing (extra "report").
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"the report needs jinja2 and matplotlib ({error}); install them with: pip install 'dwsep[report]'",
            name=error.name,
        ) from error


def format_count(value: float) -> str:
    """Formats a count with a unit prefix: 4231976 -> "4.23 M"."""
    value = float(f"{value:.3g}")  # round first: 999,900 is 1 M, not 1000 k
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.{3 if value < 1000 * limit else 6}g} {unit}"
    return f"{value:g}"


def format_percent(fraction: float) -> str:
    """Formats a fraction: 0.9123 -> "91.2 %"."""
    return f"{100 * fraction:.1f} %"


def format_milliseconds(seconds: float) -> str:
    """Formats seconds as milliseconds with three significant digits: 0.00123 -> "1.23"."""
    milliseconds = 1000 * seconds
    digits = 2 if milliseconds < 10 else 1 if milliseconds < 100 else 0
    return f"{milliseconds:.{digits}f}"


def format_duration(seconds: float) -> str:
    """Formats a duration: 134.2 -> "2 min 14 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def format_allocator(machine: Mapping[str, Any]) -> str:
    """Formats the memory allocator and what steers it: "glibc, its defaults"; "glibc, keeping freed memory"."""
    parts = [machine["allocator"]]
    if machine["allocator_settings"]:
        parts.append("keeping freed memory")
    parts += [f"{name}={value}" for name, value in machine["malloc_variables"].items()]
    return ", ".join(parts if len(parts) > 1 else [*parts, "its defaults"])
