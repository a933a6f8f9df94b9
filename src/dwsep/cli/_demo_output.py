"""What ``dwsep demo`` prints: the table, and under it the promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dwsep.analysis.report import format_allocator, format_count, format_duration, format_milliseconds, format_percent

if TYPE_CHECKING:
    from rich.console import Console


def print_results(results: dict[str, Any], console: Console) -> None:
    """Prints the results of a demo.

    Args:
        results: What is written to ``results.json``.
        console: Console to print on.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)  # fits a terminal of 80 columns
    table.add_column("network", no_wrap=True)
    for heading in ("parameters", "macs", "test\naccuracy", "s per\nepoch", "ms at\nbatch 1", "ms at\nbatch 64"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in results["rows"]:
        table.add_row(
            row["label"],
            format_count(row["parameters"]),
            format_count(row["macs"]),
            format_percent(row["test_accuracy"]),
            f"{row['epoch_seconds']:.2f}",
            format_milliseconds(row["latency"]["1"]["median"]),
            format_milliseconds(row["latency"]["64"]["median"]),
            style="bold" if row["group"] == "dwsep" else None,
        )
    console.print(table)
    promise = results["promise"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("times faster than dense", no_wrap=True)
    for heading in ("training\nepoch", "inference\nbatch 1", "inference\nbatch 64"):
        table.add_column(heading, justify="right", no_wrap=True)
    ratio, in_spatial = promise["macs_ratio"], promise["macs_ratio_spatial"]
    table.add_row("promised by macs, whole network", *(f"{ratio:.1f}" for _ in range(3)))
    table.add_row("promised by macs, 3x3 layers", *(f"{in_spatial:.1f}" for _ in range(3)))
    for entry in promise["speedups"]:
        measured = (f"{entry[metric]:.2f}" for metric in ("training", "batch_1", "batch_64"))
        table.add_row(entry["label"], *measured, style="bold" if entry["group"] == "dwsep" else None)
    console.print(table)
    verification = results["verification"]
    console.print(
        f"checked before timing: dwsep and plain PyTorch agree on the same weights to "
        f"{verification['max_abs_difference']:.1e} (allowed {verification['tolerance']:.1e})"
    )
    machine, versions = results["machine"], results["versions"]
    console.print(
        f"{machine['cpu']}, {machine['torch_threads']} of {machine['usable_cores']} usable cores; dwsep on "
        f"{machine['dwsep_isa'] or 'its reference kernels'}; PyTorch {versions['torch']} on "
        f"{machine['torch_cpu_capability']}; allocator {format_allocator(machine)}",
        markup=False,
    )
    if results["disturbance"]:
        console.print(f"note: {results['disturbance']}", style="yellow")
    console.print(f"{format_duration(results['wall_seconds'])} in all")
