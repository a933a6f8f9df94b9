"""The choice of kernels and its explanations."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

import dwsep
from dwsep import dispatch
from dwsep.geometry import ConvGeometry

GEOMETRY = ConvGeometry.make(2, 3, padding="same")


def test_select_reports_why_each_backend_was_passed_over():
    selection = dispatch.select("separable_conv", GEOMETRY, torch.float64, "cpu")
    assert selection.backend == "reference"
    assert any("torch.float64" in reason for reason in selection.refused["cpu"])
    assert selection.refused["triton"]


def test_select_remembers_its_choice():
    first = dispatch.select("separable_conv", GEOMETRY, torch.float32, "cpu")
    assert dispatch.select("separable_conv", ConvGeometry.make(2, 3, padding=1), torch.float32, "cpu") is first


def test_named_backend_which_cannot_run_raises_its_reasons():
    x, depthwise, pointwise = torch.ones(1, 2, 4, 4), torch.ones(2, 1, 3, 3), torch.ones(3, 2, 1, 1)
    with pytest.raises(NotImplementedError, match="tensors are on 'cpu', the kernels run on 'cuda'"):
        dwsep.functional.depthwise_separable_conv2d(x, depthwise, pointwise, backend="triton")
    with pytest.raises(NotImplementedError, match="float64"):
        dwsep.functional.depthwise_separable_conv2d(x.double(), depthwise.double(), pointwise.double(), backend="cpu")


@pytest.mark.skipif(not dwsep.ops.native_status().loaded, reason="compares with the native kernel")
def test_named_backends_agree():
    x, depthwise, pointwise = torch.randn(1, 8, 6, 6), torch.randn(8, 1, 3, 3), torch.randn(5, 8, 1, 1)
    native, plain = (
        dwsep.functional.depthwise_separable_conv2d(x, depthwise, pointwise, activation="relu", backend=name)
        for name in ("cpu", "reference")
    )
    torch.testing.assert_close(native, plain)
    assert dispatch.select("separable_conv", GEOMETRY, torch.float32, "cpu").backend == "cpu"


@pytest.mark.skipif(not dwsep.ops.native_status().loaded, reason="compares with the native kernel")
def test_gradients_run_natively():
    assert dispatch.select("separable_conv", GEOMETRY, torch.float32, "cpu", gradient=True).backend == "cpu"
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    weights = torch.randn(2, 1, 3, 3), torch.randn(3, 2, 1, 1)
    grads = [
        torch.autograd.grad(
            dwsep.functional.depthwise_separable_conv2d(x, *weights, activation="silu", backend=name).sum(), x
        )[0]
        for name in ("cpu", "reference", "auto")
    ]
    torch.testing.assert_close(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


@pytest.mark.skipif(not dwsep.ops.native_status().loaded, reason="compares with the native kernel")
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("gradient", [True, False])
def test_float32_runs_on_the_native_kernels(gradient, channels_last):
    for op in ("depthwise_conv", "separable_conv"):
        for kernel, dilation in ((3, 1), (3, 2), (5, 1)):
            geometry = ConvGeometry.make(2, kernel, padding="same", dilation=dilation)
            options = {"gradient": gradient, "channels_last": channels_last}
            assert dispatch.select(op, geometry, torch.float32, "cpu", **options).backend == "cpu"


@pytest.mark.skipif(not dwsep.ops.native_status().loaded, reason="compares with the native kernel")
@pytest.mark.parametrize(
    ("has", "isa", "backend"),
    [
        (False, "avx512", "cpu"),
        (True, "avx512", "reference"),
        (True, "amx", "cpu"),
        (True, "avx512_bf16", "cpu"),
    ],
)
def test_bfloat16_is_left_to_pytorch_where_the_cpu_multiplies_it_and_the_kernels_do_not(monkeypatch, has, isa, backend):
    status = dataclasses.replace(dwsep.ops.native_status(), isa=isa)
    monkeypatch.setattr(dispatch, "native_status", lambda: status)
    monkeypatch.setattr(dispatch, "_has_bfloat16_products", lambda: has)
    monkeypatch.setattr(dispatch, "_cache", {})

    def chosen(op="separable_conv", dilation=1, **options):
        geometry = ConvGeometry.make(2, 3, padding="same", dilation=dilation)
        return dispatch.select(op, geometry, torch.bfloat16, "cpu", **options).backend

    assert chosen() == backend
    assert chosen(gradient=True) == backend
    assert chosen(gradient=True, dilation=2) == backend
    assert chosen("depthwise_conv") == "cpu"


def test_cuda_runs_on_triton_but_for_what_gains_nothing(monkeypatch):
    monkeypatch.setattr(dispatch.support, "machine_reasons", lambda: ())
    monkeypatch.setattr(dispatch, "_cache", {})

    def chosen(kernel, backend="auto", op="depthwise_conv", channels_last=True, dilation=1):
        geometry = ConvGeometry.make(2, kernel, padding="same", dilation=dilation)
        return dispatch.select(op, geometry, torch.bfloat16, "cuda", backend, channels_last=channels_last)

    assert chosen(5).backend == chosen(3, dilation=2).backend == chosen(3, channels_last=False).backend == "triton"
    assert chosen(5).direct is dispatch.TRITON_DIRECT["depthwise_conv"]
    assert any("'cuda'" in reason for reason in chosen(5).refused["cpu"])
    plain = chosen(3)
    assert plain.backend == "reference"
    assert "gain nothing" in plain.refused["triton"][0]
    assert chosen(3, "triton").backend == "triton"
    assert chosen(5, op="separable_conv").backend == chosen(3, dilation=2, op="separable_conv").backend == "triton"
    assert chosen(3, op="separable_conv").backend == "reference"


def test_backends_lists_all_with_reasons():
    status = dwsep.backends()
    assert set(status) == {"cpu", "triton", "reference"}
    assert status["reference"].available
    assert all(entry.available or entry.reasons for entry in status.values())
    assert "available" in repr(status["cpu"])


def test_native_library_can_be_switched_off():
    script = (
        "import dwsep, torch; s = dwsep.backends()['cpu']; assert not s.available; print(s.reasons[0]);"
        "layer = dwsep.nn.DepthwiseSeparableConv2d(4, 6); x = torch.ones(1, 4, 5, 5); print(tuple(layer(x).shape));"
        "y = torch.ops.dwsep.depthwise_conv(x, torch.ones(4, 1, 3, 3), None, [1, 1], [1] * 4, [1, 1], 'relu');"
        "print(y[0, 0, 0, 0].item())"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "DWSEP_DISABLE_NATIVE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines() == [
        "native library: switched off by the environment variable DWSEP_DISABLE_NATIVE",
        "(1, 6, 5, 5)",
        "4.0",
    ]
