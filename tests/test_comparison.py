"""The table of docs/layers-and-libraries.md: every name exists, every link leads to a test."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import dwsep
from tests.weights.keras_layers import import_keras

PAGE = Path(__file__).parents[1] / "docs" / "layers-and-libraries.md"
TABLE = PAGE.read_text().split("## Where names differ")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines() if line.startswith("|")]
HEADER, BODY = ROWS[0], ROWS[2:]
MODULES = {"keras": "keras", "timm": "timm", "smp": "segmentation_models_pytorch", "torchvision": "torchvision",
           "bsconv": "bsconv"}  # fmt: skip


def test_table_has_the_columns():
    names = ["feature", "Keras", "timm", "smp", "torchvision", "bsconv", "fairseq", "NeMo", "dwsep"]
    assert names == HEADER
    assert len(BODY) > 20
    for row in BODY:
        assert len(row) == len(HEADER), row
        assert all(cell == "\u2013" or "`" in cell for cell in row[1:8]), row


@pytest.mark.parametrize("row", BODY, ids=lambda row: row[0])
def test_every_link_leads_to_its_test(row):
    links = re.findall(r"\[([^\]]+)\]\(([^ ]+) \"(\w+)\"\)", row[-1])
    assert links, row
    for text, path, name in links:
        source = (PAGE.parent / path).resolve().read_text()
        assert re.search(rf"^def {name}\(", source, re.MULTILINE), (path, name)
        for layer in re.findall(r"`([A-Za-z_]+)`", text):
            assert hasattr(dwsep.nn, layer) or hasattr(dwsep, layer) or layer == "receptive_field", layer


@pytest.mark.parametrize("column", range(1, 6), ids=lambda column: HEADER[column])
def test_every_name_of_a_library_exists(column):
    module = MODULES[HEADER[column].lower()]
    if module == "keras":
        import_keras()
    pytest.importorskip(module, reason=f"the comparison needs {module}")
    names = {name for row in BODY for name in re.findall(r"`([\w.]+)", row[column])}
    assert names
    for name in names:
        assert name.startswith(f"{module}."), name
        path, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(path), attribute), name


def test_arguments_that_the_table_claims_exist():
    """Options, which a name alone does not show."""
    import inspect

    keras = import_keras()
    timm = pytest.importorskip("timm", reason="the comparison needs timm")
    ours = set(inspect.signature(keras.layers.SeparableConv2D.__init__).parameters)
    for name in ("depth_multiplier", "depthwise_initializer", "pointwise_initializer", "depthwise_regularizer"):
        assert name in ours
    assert {"channel_multiplier", "padding"} <= set(inspect.signature(timm.layers.SeparableConv2d).parameters)
