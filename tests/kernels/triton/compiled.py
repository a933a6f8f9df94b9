"""Runs the programs that compile kernels for GPUs that are not here, and checks what they report."""

from __future__ import annotations

import json
from pathlib import Path

from tests import forks


def compile_all(tmp_path: Path, *options: str, program: str = "compiling.py") -> list[dict]:
    """What a program beside this file reports, run without the interpreter and with an empty cache."""
    path = Path(__file__).with_name(program)
    script = (
        f"import runpy, sys\nsys.argv = {[program, *options]!r}\nrunpy.run_path({str(path)!r}, run_name='__main__')"
    )
    result = forks.run(script, {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"})
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


def check(records: list[dict]) -> None:
    """Every kernel has PTX and a cubin without spills; what it uses is printed."""
    for record in records:
        print(*(record[key] for key in ("geometry", "kernel", "dtype", "arch", "registers", "shared", "spills")))
    assert all(record["ptx"] and 0 < record["registers"] <= 255 for record in records)
    spilling = [record for record in records if record["spills"]]
    assert spilling == [], spilling
