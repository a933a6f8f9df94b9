"""Whole networks of libraries go through in minutes and within memory, with progress."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, sys, time
import torch, dwsep
from torch import nn
from tests.convert.toys import images

library, name = sys.argv[1].split(":")
torch.set_num_threads(2)
torch.manual_seed(0)
if library == "timm":
    import timm
    model = timm.create_model(name)
else:
    import torchvision
    model = torchvision.models.get_model(name)
data = [images(8, 3, 224, seed) for seed in range(4)]
for module in model.modules():
    if isinstance(module, nn.BatchNorm2d):
        module.momentum = None  # norms that have seen data, as trained ones have
        nn.init.ones_(module.weight)
with torch.no_grad():
    model(data[0])
started, told = time.process_time(), []
report = dwsep.separate_(
    model.eval(), dwsep.SeparateConfig(macs=float(sys.argv[2])), example_inputs=data[0][:1], calibration=data,
    on_progress=lambda *what: told.append(what))
print(json.dumps({
    "seconds": time.process_time() - started, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    "told": len(told), "separated": len(report.separated), "share": report.macs_after / report.macs_before,
    "error": report.output_error, "summary": report.summary}))
"""


@pytest.mark.sweep
@pytest.mark.timeout(7200)  # by the clock on the wall; the test asks for seconds of the processor
@pytest.mark.parametrize(
    "name, share, fewest", [("timm:resnet18", 0.4, 10), ("timm:resnet50", 0.65, 8), ("torchvision:vgg11_bn", 0.4, 5)]
)
def test_networks_of_libraries_go_through(name, share, fewest):
    pytest.importorskip(name.split(":")[0], reason="the library is not installed")
    finished = subprocess.run([sys.executable, "-c", SCRIPT, name, str(share)], capture_output=True, text=True)
    # A machine on which much else runs may end it for want of memory, which says nothing on standard error.
    assert finished.returncode == 0, f"exit status {finished.returncode} (-9: killed)\n{finished.stderr}"
    result = json.loads(finished.stdout)
    print(result)
    assert result["seconds"] / 2 < 300  # of two cores: a machine that does other work beside makes the clock slower
    assert result["gib"] < 4
    assert result["told"] > 20
    assert result["separated"] >= fewest
    assert 0.8 * share < result["share"] <= share
    assert result["error"] < 1
