"""Keras on its PyTorch backend: layers with random weights."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

os.environ["KERAS_BACKEND"] = "torch"


def import_keras() -> Any:
    """Keras, or a skip that says why not."""
    keras = pytest.importorskip("keras", reason="the comparison with Keras needs the package keras")
    if keras.backend.backend() != "torch":
        pytest.skip(f"Keras runs on {keras.backend.backend()}, the comparison needs its torch backend")
    return keras


def randomise(model: Any, seed: int = 0) -> None:
    """Draw a layer's or model's weights anew, variances positive."""
    rng = np.random.default_rng(seed)
    weights = []
    for variable in model.weights:
        value = rng.normal(size=variable.shape, scale=0.5)
        weights.append(np.abs(value) + 0.3 if "variance" in variable.path or "gamma" in variable.path else value)
    model.set_weights(weights)


def channels_last(x: Tensor) -> Tensor:
    """(N, C, *spatial) as Keras wants it by default, channels innermost."""
    return x.movedim(1, -1).contiguous()


def call(model: Any, x: Tensor) -> Tensor:
    """A Keras layer or model on (N, C, *spatial), its result laid out alike."""
    with torch.no_grad():
        out = model(channels_last(x))
    return out.movedim(-1, 1) if out.dim() > 2 else out
