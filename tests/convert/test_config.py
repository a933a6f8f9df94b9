"""What can be asked for, and what is refused."""

from __future__ import annotations

import pytest

from dwsep import SeparateConfig
from dwsep.convert._config import matches


@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({}, ValueError, "exactly one of error, macs, latency, latency_seconds, rank must be given, got none"),
        ({"error": 0.1, "macs": 0.5}, ValueError, "must be given, got error, macs"),
        ({"error": 0}, ValueError, "error must be finite and above 0, got 0"),
        ({"error": 1.5}, ValueError, "error is a share and must be below 1, got 1.5"),
        ({"latency": 1}, ValueError, "latency is a share and must be below 1, got 1"),
        ({"latency_seconds": -1.0}, ValueError, "latency_seconds must be finite and above 0"),
        ({"macs": float("nan")}, ValueError, "macs must be finite"),
        ({"macs": "0.5"}, TypeError, "macs must be a number, got '0.5' of type str"),
        ({"macs": True}, TypeError, "macs must be a number, got True"),
        ({"rank": 0}, ValueError, "rank must be between 1"),
        ({"rank": 1.5}, TypeError, "rank must be an integer, got 1.5"),
        ({"rank": 1, "order": "depthwise"}, ValueError, "order: unknown name 'depthwise'; valid names are 'auto'"),
        ({"rank": 1, "include": 3}, TypeError, "include must be names or regular expressions, got 3"),
        ({"rank": 1, "exclude": ["a", 3]}, TypeError, "exclude must be names or regular expressions, got 3"),
        ({"rank": 1, "include": "("}, ValueError, "include: '\\(' is no regular expression"),
        ({"rank": 1, "min_channels": 0}, ValueError, "min_channels must be between 1"),
        ({"rank": 1, "max_rank": 0}, ValueError, "max_rank must be between 1"),
        ({"rank": 1, "sweeps": -1}, ValueError, "sweeps must be between 0"),
    ],
)
def test_bad_config_is_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        SeparateConfig(**options)


def test_budget_and_patterns():
    config = SeparateConfig(latency_seconds=0.01, include="layer1", exclude=["a", "b"])
    assert config.budget == ("latency_seconds", 0.01)
    assert config.include == ("layer1",)
    assert config.exclude == ("a", "b")
    assert SeparateConfig(rank=1, order="auto").orders == ("depthwise_first", "pointwise_first")


@pytest.mark.parametrize(
    "pattern, name, wanted",
    [
        ("layer1", "layer1", True),
        ("layer1", "layer1.0.conv1", True),
        ("layer1", "layer10.conv", False),
        ("conv1", "layer1.0.conv1", False),
        (r".*\.conv1", "layer1.0.conv1", True),
        (r"layer[12]\..*", "layer2.0", True),
    ],
)
def test_matches(pattern, name, wanted):
    assert matches(pattern, name) is wanted
