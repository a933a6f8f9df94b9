"""``dwsep bench layers --device cuda``: what is measured, and the table of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import typer

from dwsep.errors import ArgumentError, unknown_name


def measure_layers(
    training: bool,
    dtype: str,
    batches: Sequence[int],
    names: Sequence[str],
    peers: str | None,
    markdown: Path | None,
    ignored: Sequence[str],
) -> None:
    """Times the depthwise layers on the GPU; raises :class:`ArgumentError` for options without a meaning there."""
    from dwsep.bench import cuda

    if not training:
        raise ArgumentError("--device cuda measures training steps: it needs --training")
    if ignored:
        raise ArgumentError(f"--device cuda measures depthwise layers alone, and takes no {', '.join(ignored)}")
    if dtype not in cuda.DTYPES:
        raise unknown_name("dtype", dtype, tuple(cuda.DTYPES))
    for name in names:
        if not any(name in case.name for case in cuda.CASES):
            raise unknown_name("case", name, tuple(case.name for case in cuda.CASES))
    chosen = list(cuda.PEERS) if peers is None else [cuda.OURS, *(name.strip() for name in peers.split(","))]
    for name in chosen:
        if name not in cuda.PEERS:
            raise unknown_name("peers", name, tuple(cuda.PEERS))
    cuda.require_gpu()
    cases = [case for case in cuda.CASES if not names or any(name in case.name for name in names)]
    bandwidth, records = cuda.copy_bandwidth(), []
    for case in cases:
        for batch in batches or [case.batch]:
            records.append(cuda.compare(replace(case, batch=batch), dtype, list(dict.fromkeys(chosen))))
            typer.echo(f"{case.name} batch {batch}: done", err=True)
    table = cuda.table(records, bandwidth)
    typer.echo(table)
    if markdown is not None:
        markdown.write_text(f"# Depthwise training steps on a GPU, microseconds\n\n{table}\n")
    if any(figures["status"] == "wrong" for record in records for figures in cuda.ours(record)):
        raise typer.Exit(1)
