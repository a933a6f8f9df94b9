"""A run's results as a page: the command, the machine, the versions, the ceilings, then the tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dwsep.analysis._load import describe_disturbance
from dwsep.analysis.ceilings import Ceilings
from dwsep.bench.peers import OURS
from dwsep.bench.results import notes
from dwsep.bench.tables import Table, result_tables, summary_table

_COMPARED = """\
Times are medians in milliseconds. "x best" is the time of the best peer (bold) over dwsep's, more than 1 where dwsep is
faster; "x eager" compares with the better of PyTorch's two memory formats, "x compile" with torch.compile."""
_VERIFIED = """\
NCHW and NHWC are eager PyTorch; ORT is ONNX Runtime. Every output, and in training every gradient, was compared with
float64 before it was timed; peers took turns, so that whatever slowed the machine slowed them all."""
_LEGENDS = {
    "layers": f"""\
{_COMPARED}
"floor" is the share that dwsep reaches of the speed which the arithmetic at the multiply-add peak, or the memory
traffic at the copy rate of that working set, allows: the larger of the two times over dwsep's. {_VERIFIED}""",
    "networks": f"""\
{_COMPARED}
dwsep is the network after `dwsep.accelerate_`, at inference with `frozen=True`: all peers but eager PyTorch hold their
weights constant. A network's size in pixels follows its name; weights are random, dropout
and stochastic depth are off; in bfloat16 OpenVINO has the same weights in a float32 model, which it is told to compute
in bf16. A training step is forward and backward of a linear loss, in training mode, without an
optimizer; bfloat16 in training is autocast to it, for all peers. "saved" is what dwsep saves for the backward over what
eager PyTorch saves. "floor ms" is the time of the convolutions' and linear layers' multiply-adds, three times as many
in training, at the multiply-add peak; "floor" is the share which dwsep reaches of that speed. {_VERIFIED}""",
}


def render_markdown(results: Mapping[str, Any]) -> str:
    """Renders results as a page in Markdown.

    Args:
        results: What :func:`dwsep.bench.run.run` returned.

    Returns:
        The page.
    """
    records = results["records"]
    subject = results.get("subject", "layers")
    title = f"# {subject[0].upper()}{subject[1:]} against their peers"
    parts = [title, f"`{results['command']}`", _facts(results), _LEGENDS[subject]]
    parts += [
        "## Summary",
        "Geometric mean and minimum over the cases of each table below.",
        _table(summary_table(records)),
    ]
    for table in result_tables(records):
        parts += [f"## {table.title[0].upper()}{table.title[1:]}", _table(table)]
    remarks = notes(records)
    if remarks:
        parts += ["## Not timed", "\n".join(f"- {remark}" for remark in remarks)]
    return "\n\n".join(parts) + "\n"


def disturbance(results: Mapping[str, Any]) -> str | None:
    """Says so if other processes kept the machine busy during the comparisons."""
    loads = [record["other_cores"] for record in results["records"] if record["other_cores"] is not None]
    machine = results["machine"]
    worst = max(loads, default=None)
    return describe_disturbance(worst, machine["torch_threads"], machine["usable_cores"])


def describe_ceilings(ceilings: Ceilings, dtype: str) -> str:
    """Puts the ceilings into a line."""
    parts = [f"best {dtype} matrix product {ceilings.matmul[dtype] / 1e9:.0f} GFLOP/s"]
    if ceilings.fma_peak is not None:
        parts.insert(0, f"float32 multiply-add peak {ceilings.fma_peak / 1e9:.0f} GFLOP/s ({ceilings.isa})")
    rates = ", ".join(f"{rate / 1e9:.0f} at {size / 2**20:.0f} MiB" for size, rate in sorted(ceilings.copy.items()))
    return f"{', '.join(parts)}; copy in GB/s by working set: {rates}"


def _facts(results: Mapping[str, Any]) -> str:
    machine, versions = results["machine"], results["versions"]
    shown = (OURS, "torch", "timm", "torchvision", "onnxruntime", "openvino", "python")
    lines = [
        f"- machine: {machine['cpu']}, {machine['usable_cores']} cores, {machine['torch_threads']} threads; "
        + ", ".join(f"{name} {size}" for name, size in machine["caches"].items()),
        f"- system: {machine['system']} {machine['architecture']}, glibc {machine['glibc'] or 'not used'}, "
        f"kernels {machine['isa'] or 'none'}",
        "- versions: " + ", ".join(f"{name} {versions[name]}" for name in shown if name in versions),
    ]
    for dtype, entry in results["ceilings"].items():
        lines.append(f"- ceilings: {describe_ceilings(Ceilings.from_json(entry), dtype)}")
    disturbed = disturbance(results)
    if disturbed is not None:
        lines.append(f"- disturbance, at worst: {disturbed}")
    return "\n".join(lines)


def _table(table: Table) -> str:
    rows = [table.headings, ("---", *("---:" for _ in table.headings[1:]))]
    for cells, best in zip(table.rows, table.best, strict=True):
        rows.append(tuple(f"**{cell}**" if column == best else cell for column, cell in enumerate(cells)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
