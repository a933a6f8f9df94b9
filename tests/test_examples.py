"""The examples in the docstrings of layers, blocks, weights, networks and conversion run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import dwsep

MODULES = [
    f"{package.__name__}.{module.name}"
    for package in (dwsep.networks, dwsep.nn, dwsep.weights, dwsep.convert)
    for module in pkgutil.iter_modules(package.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert not result.failed
