"""What the tests of the commands share: calling one, and data small enough to train on."""

from __future__ import annotations

import math

from typer.testing import CliRunner

from dwsep.cli.main import app


def invoke(*arguments):
    """Run ``dwsep`` with these arguments in this process."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def write_series(folder):
    """Toy_TRAIN.ts and Toy_TEST.ts: two classes, told apart by a sine's sign, of several lengths."""
    for name, count in (("TRAIN", 24), ("TEST", 8)):
        rows = []
        for index in range(count):
            sign = 1 if index % 2 else -1
            values = [sign * math.sin(step / 3) + 0.01 * index for step in range(20 - index % 3)]
            rows.append(",".join(f"{value:.3f}" for value in values) + (":up" if index % 2 else ":down"))
        (folder / f"Toy_{name}.ts").write_text("@data\n" + "\n".join(rows) + "\n")
