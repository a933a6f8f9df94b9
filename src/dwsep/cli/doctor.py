"""``dwsep doctor``: what runs here, why not, and whether it computes the right thing."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from dwsep.cli._doctor_checks import Check

_MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "failed": "[red]✗[/]"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Shows the machine, versions and backends, and tests the kernels against float64 in seconds.

    Exits with 1 if a check fails. Warnings do not count as failures.
    """
    from dwsep.analysis.machine import describe_machine, describe_versions
    from dwsep.cli._console import output_console, progress_console
    from dwsep.cli._doctor_checks import run_checks

    with progress_console().status("looking at this machine") as status:
        machine, versions, backends = describe_machine(), describe_versions(), _describe_backends()
        checks = run_checks(on_step=status.update)
    passed = all(check.status != "failed" for check in checks)
    if as_json:
        report = {
            "ok": passed,
            "machine": machine,
            "versions": versions,
            "backends": backends,
            "checks": [asdict(check) for check in checks],
        }
        print(json.dumps(report, indent=2))
    else:
        console = output_console()
        console.print(_facts_table(machine, versions, backends))
        console.print(_checks_table(checks))
        console.print(_verdict(checks))
    raise typer.Exit(0 if passed else 1)


def _describe_backends() -> dict[str, Any]:
    import os

    import dwsep

    native = asdict(dwsep.ops.native_status())
    native["forced_isa"] = os.environ.get("DWSEP_ISA")
    backends: dict[str, Any] = {
        name: {"available": status.available, "reasons": list(status.reasons)}
        for name, status in dwsep.backends().items()
    }
    return {"native_library": native, **backends}


def _facts_table(machine: dict[str, Any], versions: dict[str, str], backends: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    native = backends["native_library"]
    rows = [
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("system", f"{machine['system']} {machine['architecture']}, glibc {machine['glibc'] or 'not used'}"),
        (
            "processor",
            f"{machine['cpu']}, {machine['usable_cores']} of {machine['logical_cores']} logical cores usable",
        ),
        ("caches", ", ".join(f"{name} {size}" for name, size in machine["caches"].items()) or "unknown"),
        ("flags", " ".join(machine["flags"]) or "unknown"),
        ("threads", f"{machine['torch_threads']} in PyTorch, whose own kernels use {machine['torch_cpu_capability']}"),
        ("allocator", machine["allocator"]),
        ("memory variables", _join(f"{k}={v}" for k, v in machine["malloc_variables"].items()) or "none set"),
        ("paths compiled", _join(native["compiled_isas"]) or "none"),
        ("paths usable here", _join(native["supported_isas"]) or "none"),
        ("path chosen", f"{native['isa'] or 'none'} (DWSEP_ISA {native['forced_isa'] or 'not set'})"),
    ]
    for name, backend in backends.items():
        if name != "native_library":
            rows.append((f"backend {name}", "available" if backend["available"] else "; ".join(backend["reasons"])))
    table = Table(title="this machine", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape(value))
    return table


def _checks_table(checks: list[Check]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="checks", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(_MARKS[check.status], check.name, escape(check.detail))
    return table


def _verdict(checks: list[Check]) -> str:
    failed = sum(check.status == "failed" for check in checks)
    warnings = sum(check.status == "warning" for check in checks)
    note = f", with {warnings} warning{'s' * (warnings > 1)} (marked !)" if warnings else ""
    if failed:
        return f"[red]{failed} check{'s' * (failed > 1)} failed (marked ✗)[/]{note}"
    return f"[green]all checks passed[/]{note}"


def _join(parts: Any) -> str:
    return ", ".join(parts)
