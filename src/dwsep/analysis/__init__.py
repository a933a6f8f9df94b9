"""What a network costs: multiply-adds by formula, latency by measurement, and the page that shows both."""

from dwsep.analysis.allocator import keep_freed_memory
from dwsep.analysis.api import analyze
from dwsep.analysis.cost import LayerCost, ModelCost, count
from dwsep.analysis.cost_report import CostReport
from dwsep.analysis.latency import Latency, measure
from dwsep.analysis.report import write_demo_report

__all__ = [
    "CostReport",
    "Latency",
    "LayerCost",
    "ModelCost",
    "analyze",
    "count",
    "keep_freed_memory",
    "measure",
    "write_demo_report",
]
