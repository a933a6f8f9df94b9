"""``dwsep analyze``: what every layer of a network costs, promised and paid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def analyze(
    network: Annotated[
        str,
        typer.Argument(
            help="One of dwsep's networks, timm:NAME, torchvision:NAME or FILE.py:FUNCTION, which makes it."
        ),
    ],
    shape: Annotated[
        str | None, typer.Option("--input", help="Shape of the input, 1,3,224,224.", show_default="the network's own")
    ] = None,
    training: Annotated[bool, typer.Option("--training", help="A training step instead of an inference.")] = False,
    accelerated: Annotated[
        bool,
        typer.Option(
            "--accelerate", help="After dwsep.accelerate_; not the network of --against, where it is the same."
        ),
    ] = False,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Time it, or count alone, on meta.")] = True,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Weights and input in NHWC.")] = False,
    against: Annotated[str | None, typer.Option(help="A second network, shown beside the first.")] = None,
    sort: Annotated[
        str | None, typer.Option(help="order, time, macs or bytes.", show_default="time where there is one")
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(min=0, help="Lines by so many parts of a name; 0 for every layer.", show_default="2 if many"),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="How long it is timed.")] = 4.0,
    html: Annotated[Path | None, typer.Option(help="The report as a page.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="The report as data.")] = None,
) -> None:
    """Show what every layer of a network costs: multiply-adds, bytes, time, and the floor of this machine.

    With --against, two networks side by side: below their tables, on the page of --html, and in the data of --json.
    Freed memory is then kept, as dwsep train keeps it (DWSEP_KEEP_ALLOCATOR=1 leaves the allocator alone): the second
    network would profit from what the first one frees.
    """
    from dwsep.analysis._pages import save
    from dwsep.analysis._tables import SORTS
    from dwsep.analysis.allocator import keep_freed_memory
    from dwsep.analysis.report import require_report_packages
    from dwsep.cli._analyze_networks import load
    from dwsep.cli._analyze_output import print_comparison, print_table
    from dwsep.cli._console import check_writable, output_console, progress_console
    from dwsep.errors import unknown_name

    for option, path in (("--html", html), ("--json", json_file)):
        check_writable(option, path)
    if sort is not None and sort not in SORTS:
        raise unknown_name("sort", sort, SORTS)
    if html is not None:
        require_report_packages()
    if against and latency:
        keep_freed_memory()
    progress = progress_console()
    reports = []
    asked = [(network, accelerated), *([(against, accelerated and against != network)] if against else [])]
    for name, faster in asked:
        with progress.status(f"analysing {name}"):
            made = load(name, shape, meta=not latency, training=training, channels_last=channels_last)
            reports.append(made.report(latency=latency, training=training, accelerated=faster, seconds=seconds))
    console = output_console()
    for report in reports:
        print_table(console, report, sort, depth)
    if len(reports) == 2:
        print_comparison(console, *reports)
    for path, what in ((html, "html"), (json_file, "json")):
        if path is not None:
            save(reports[0], path, what, *reports[1:])
            progress.print(f"wrote {path}", soft_wrap=True, markup=False)
