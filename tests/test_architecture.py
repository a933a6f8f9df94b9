"""Imports point one way, and ``import dwsep`` needs torch alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "dwsep"
# What a room may import: itself, and the rooms listed.
BELOW = {
    "errors": set(),
    "tables": set(),
    "geometry": {"errors"},
    "kernels": {"geometry", "errors"},
    "ops": {"kernels", "geometry", "errors"},
    "dispatch": {"ops", "kernels", "geometry", "errors"},
    "functional": {"dispatch", "ops", "kernels", "geometry", "errors"},
    "nn": {"functional", "dispatch", "ops", "kernels", "geometry", "errors"},
    "accelerate": {"tables", "nn", "functional", "dispatch", "ops", "kernels", "geometry", "errors"},
    "networks": {"nn", "functional", "geometry", "errors"},
    "weights": {"networks", "nn", "functional", "geometry", "errors"},
    "analysis": {"accelerate", "nn", "functional", "dispatch", "ops", "kernels", "geometry", "errors"},
    # A budget of macs or of latency counts and times as analysis does, and files are written as networks' are.
    "convert": {"analysis", "networks", "tables", "nn", "functional", "geometry", "errors"},
    "bench": {"accelerate", "analysis", "nn", "functional", "dispatch", "ops", "kernels", "geometry", "errors"},
    "training": {"accelerate", "networks", "nn", "functional", "geometry", "errors"},
}
BELOW["cli"] = set(BELOW)
# dispatch chooses among the operators, so they are imported below it; the operators call the reference kernels.


def _rooms_imported(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "dwsep" else [node.module]
        elif isinstance(node, ast.ImportFrom) and node.level > 0:
            pytest.fail(f"{path}: relative import")
        rooms |= {name.split(".")[1] for name in names if name.startswith("dwsep.")}
    return rooms & set(BELOW)


@pytest.mark.parametrize("room", BELOW)
def test_imports_point_one_way(room):
    files = [SOURCE / f"{room}.py"] if (SOURCE / f"{room}.py").exists() else sorted((SOURCE / room).rglob("*.py"))
    assert files
    for path in files:
        upward = _rooms_imported(path) - BELOW[room] - {room}
        assert not upward, f"{path.relative_to(SOURCE)} imports {upward}"


def test_import_needs_torch_alone():
    optional = "torchvision timm torchmetrics safetensors pydantic typer rich matplotlib jinja2 PIL pandas yaml"
    optional += " onnx onnxruntime openvino h5py keras huggingface_hub segmentation_models_pytorch datasets"
    script = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {optional.split()!r}:
            raise ImportError(f'import dwsep asked for {{name}}')
sys.meta_path.insert(0, Refuse())
import torch
before = set(sys.modules)
import dwsep, dwsep.nn, dwsep.functional, dwsep.networks
layer = dwsep.nn.DepthwiseSeparableConv2d(4, 8)
assert layer(torch.ones(1, 4, 5, 5)).shape == (1, 8, 5, 5)
assert 'triton' not in set(sys.modules) - before
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
