"""``dwsep demo``: what the arithmetic promises, and what this machine pays out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output_dir: Annotated[
        Path, typer.Option(help="Folder for results.json, report.html and what an interrupted run has done.")
    ] = Path("runs/demo"),
    epochs: Annotated[int | None, typer.Option(help="Training epochs.  [default: as long as the recipe says]")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and of the order of images.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads.  [default: as many as PyTorch uses here]")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny network on few images: seconds, not minutes; proves nothing.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not go on from an interrupted run.")] = False,
) -> None:
    """Trains a dense network and its depthwise separable twin on real images and compares them.

    The separable one is trained and timed in plain PyTorch, in both memory layouts, and in dwsep. Prints one table, and
    writes results.json and report.html. An interrupted run goes on where it was, if the options are the same.

    Has glibc keep freed memory, for every row; DWSEP_KEEP_ALLOCATOR=1 leaves it alone.
    """
    from dwsep.analysis.allocator import keep_freed_memory
    from dwsep.cli._console import output_console, progress_console
    from dwsep.cli._demo_output import print_results
    from dwsep.cli._demo_run import Settings, run

    keep_freed_memory()
    settings = Settings(output_dir=output_dir, epochs=epochs, seed=seed, threads=threads, quick=quick, fresh=fresh)
    results = run(settings, progress_console())
    console = output_console()
    print_results(results, console)
    for name in ("results.json", "report.html"):
        console.print(f"wrote {output_dir / name}", soft_wrap=True)
