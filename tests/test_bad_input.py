# ruff: noqa: E501 - one row a line reads best
"""Every wrong argument gives an error of torch's class naming argument, value and rule; none crashes."""

from __future__ import annotations

import gzip
import re

import pytest
import torch

import dwsep
from dwsep import nn
from dwsep.functional import depthwise_conv2d, depthwise_separable_conv1d, depthwise_separable_conv2d

X = torch.ones(1, 4, 6, 6)
DW = torch.ones(4, 1, 3, 3)
PW = torch.ones(6, 4, 1, 1)
HUGE = 2**32
VALUE = (ValueError, RuntimeError)  # torch raises one from constructors and the other from functions; ours is both


def separable(x=X, depthwise=DW, pointwise=PW, *biases, **options):
    return depthwise_separable_conv2d(x, depthwise, pointwise, *biases, **options)


def layer(*arguments, x=X, **options):
    return nn.DepthwiseSeparableConv2d(*(arguments or (4, 6)), **options)(x)


ROWS = [
    # stride, dilation, kernel size
    ("stride zero", lambda: separable(stride=0), VALUE, "stride must be between 1 and .*, got 0"),
    ("stride negative", lambda: separable(stride=-1), VALUE, "stride must be between 1 and .*, got -1"),
    ("stride huge", lambda: separable(stride=HUGE), VALUE, f"stride must be between 1 and .*, got {HUGE}"),
    ("stride one axis zero", lambda: separable(stride=(1, 0)), VALUE, "stride must be between 1"),
    ("stride float", lambda: separable(stride=1.5), TypeError, "stride must be an integer"),
    ("stride bool", lambda: separable(stride=True), TypeError, "stride must be an integer, got True"),
    ("stride string", lambda: separable(stride="2"), TypeError, "stride must be an integer"),
    ("stride three entries", lambda: separable(stride=(1, 1, 1)), VALUE, "stride must have 1 or 2 entries, got 3"),
    ("stride empty", lambda: separable(stride=()), VALUE, "stride must have 1 or 2 entries, got 0"),
    ("stride None", lambda: separable(stride=None), TypeError, "stride must be an integer"),
    ("dilation zero", lambda: separable(dilation=0), VALUE, "dilation must be between 1 and .*, got 0"),
    ("dilation negative", lambda: separable(dilation=(1, -3)), VALUE, "dilation must be between 1 and .*, got -3"),
    ("dilation huge", lambda: separable(dilation=HUGE), VALUE, "dilation must be between 1"),
    ("dilation times kernel overflows", lambda: separable(dilation=2**31 - 1), VALUE, "dilation . .kernel_size"),
    ("kernel zero", lambda: nn.DepthwiseConv2d(4, 0), VALUE, "kernel_size must be between 1 and .*, got 0"),
    ("kernel negative", lambda: layer(4, 6, -3), VALUE, "kernel_size must be between 1 and .*, got -3"),
    ("kernel huge", lambda: layer(4, 6, HUGE), VALUE, "kernel_size must be between 1"),
    ("kernel float", lambda: layer(4, 6, 3.0), TypeError, "kernel_size must be an integer"),
    ("kernel three entries", lambda: layer(4, 6, (3, 3, 3)), VALUE, "kernel_size must have 1 or 2 entries"),
    ("kernel weight of no taps", lambda: separable(depthwise=torch.ones(4, 1, 0, 3)), VALUE, "kernel_size must be"),
    # padding
    ("padding negative integer", lambda: separable(padding=-1), VALUE, "padding must be between 0 and .*, got -1"),
    ("padding huge", lambda: separable(padding=HUGE), VALUE, "padding must be between 0"),
    ("padding float", lambda: separable(padding=0.5), TypeError, "padding must be a name, an integer"),
    ("padding float in a pair", lambda: separable(padding=[(0, 0.5), 1]), TypeError, "padding must be an integer"),
    ("padding unknown name", lambda: separable(padding="full"), VALUE, "'full'; valid names are 'same', 'same_tf'"),
    ("padding causal in 2d", lambda: separable(padding="causal"), VALUE, "'causal' needs one spatial axis, got 2"),
    ("padding triple", lambda: separable(padding=[(0, 1, 2), 1]), VALUE, "an integer or a .low, high. pair"),
    ("padding too many axes", lambda: separable(padding=(1, 1, 1)), VALUE, "padding must have 1 or 2 entries, got 3"),
    ("padding crops all", lambda: separable(padding=[(-6, 9), 1]), VALUE, "crops the whole input of size 6"),
    # sizes of the input
    ("output below one", lambda: separable(X[..., :2], padding=0), VALUE, "output size must be at least 1: along.*axis 1"),
    ("output below one by dilation", lambda: separable(padding=0, dilation=4), VALUE, "dilated kernel 9"),
    ("empty spatial axis", lambda: separable(torch.ones(1, 4, 0, 6)), VALUE, "crops the whole input|output size"),
    ("no channels in x", lambda: separable(torch.ones(1, 0, 6, 6)), VALUE, "at least 1 channel"),
    ("rank 2", lambda: separable(torch.ones(6, 6)), VALUE, "x must have 4 dimensions .* or 3 unbatched, got 2"),
    ("rank 5", lambda: separable(torch.ones(1, 4, 6, 6, 6)), VALUE, "x must have 4 dimensions .*, got 5"),
    ("rank 5 to a layer", lambda: layer(x=torch.ones(1, 4, 6, 6, 6)), VALUE, "x must have 4 dimensions .*, got 5"),
    ("rank in 1d", lambda: depthwise_separable_conv1d(X, DW[..., 0], PW[..., 0]), VALUE, "x must have 3 dimensions"),
    ("x a list", lambda: separable([[1.0]]), TypeError, "x must be a tensor, got list"),
    # channels and weights
    ("channels of x", lambda: separable(torch.ones(1, 3, 6, 6)), VALUE, "multiple of x's 3 channels.*got 4"),
    ("channels of a layer's x", lambda: layer(x=torch.ones(1, 5, 6, 6)), VALUE, "x must have 4 channels"),
    ("depthwise weight not depthwise", lambda: separable(depthwise=torch.ones(4, 2, 3, 3)), VALUE, r"\(\*, 1, \*, \*\)"),
    ("depthwise weight rank", lambda: separable(depthwise=torch.ones(4, 1, 3)), VALUE, "depthwise_weight must have 4"),
    ("depthwise weight a number", lambda: separable(depthwise=3), TypeError, "depthwise_weight must be a tensor"),
    ("pointwise weight channels", lambda: separable(pointwise=torch.ones(6, 5, 1, 1)), VALUE, r"\(\*, 4, 1, 1\)"),
    ("pointwise weight taps", lambda: separable(pointwise=torch.ones(6, 4, 3, 3)), VALUE, r"got \(6, 4, 3, 3\)"),
    ("pointwise weight empty", lambda: separable(pointwise=torch.ones(0, 4, 1, 1)), VALUE, "pointwise_weight must have"),
    ("depthwise bias size", lambda: separable(X, DW, PW, torch.ones(5)), VALUE, r"depthwise_bias must have shape \(4\)"),
    ("pointwise bias size", lambda: separable(X, DW, PW, None, torch.ones(4)), VALUE, r"pointwise_bias must have.*\(6\)"),
    ("bias a list", lambda: separable(X, DW, PW, [0.0] * 4), TypeError, "depthwise_bias must be a tensor"),
    ("depthwise function bias", lambda: depthwise_conv2d(X, DW, torch.ones(3)), VALUE, r"bias must have shape \(4\)"),
    # dtype and device
    ("dtype integer", lambda: separable(X.int()), VALUE, "floating-point dtype .* got torch.int32"),
    ("dtype complex", lambda: separable(X.cfloat()), VALUE, "floating-point dtype .* got torch.complex64"),
    ("dtype mixed", lambda: separable(X.double()), VALUE, "depthwise_weight must have the dtype of x, torch.float64"),
    ("dtype of a bias", lambda: separable(X, DW, PW, torch.ones(4).half()), VALUE, "depthwise_bias must have the dtype"),
    ("device", lambda: separable(X.to("meta")), VALUE, "depthwise_weight must be on the device of x, meta, got cpu"),
    ("device of pointwise", lambda: separable(pointwise=PW.to("meta")), VALUE, "pointwise_weight must be on the device"),
    # constructor values
    ("in_channels zero", lambda: layer(0, 6), VALUE, "in_channels must be between 1 and .*, got 0"),
    ("in_channels negative", lambda: nn.DepthwiseConv1d(-4, 3), VALUE, "in_channels must be between 1"),
    ("in_channels float", lambda: layer(4.0, 6), TypeError, "in_channels must be an integer, got 4.0"),
    ("out_channels zero", lambda: layer(4, 0), VALUE, "out_channels must be between 1 and .*, got 0"),
    ("depth_multiplier zero", lambda: layer(4, 6, depth_multiplier=0), VALUE, "depth_multiplier must be between 1"),
    ("depth_multiplier huge", lambda: nn.DepthwiseConv2d(4, 3, depth_multiplier=2**30), VALUE, "in_channels . depth"),
    ("depth_multiplier string", lambda: layer(4, 6, depth_multiplier="2"), TypeError, "depth_multiplier must be an int"),
    ("order and multiplier", lambda: layer(4, 7, depth_multiplier=2, order="pointwise_first"), VALUE, "multiple of depth"),
    # names
    ("norm unknown", lambda: layer(4, 6, norm="layer"), VALUE, "norm: unknown name 'layer'; valid names are 'batch'"),
    ("inner_norm unknown", lambda: layer(4, 6, inner_norm="bn"), VALUE, "inner_norm: unknown name 'bn'"),
    ("norm a number", lambda: layer(4, 6, norm=3), TypeError, "norm must be None, a name, a module"),
    ("norm callable of the wrong kind", lambda: layer(4, 6, norm=lambda c: c), TypeError, "must return a torch.nn.Module"),
    ("activation unknown", lambda: layer(4, 6, activation="swish"), VALUE, "'swish'; valid names are 'relu', 'relu6'"),
    ("activation a number", lambda: layer(4, 6, inner_activation=1), TypeError, "inner_activation must be None, a name"),
    ("functional activation unknown", lambda: separable(activation="tanh"), VALUE, "activation: unknown name 'tanh'"),
    ("functional activation a callable", lambda: separable(activation=torch.relu), TypeError, "activation must be None"),
    ("order unknown", lambda: layer(4, 6, order="dw"), VALUE, "'dw'; valid names are 'depthwise_first', 'pointwise"),
    ("padding_mode unknown", lambda: layer(4, 6, padding_mode="same"), VALUE, "padding_mode: unknown name .*'reflect'"),
    ("residual unknown", lambda: layer(4, 6, residual="add"), VALUE, "residual: unknown name .*'input', 'depthwise'"),
    ("residual a flag", lambda: layer(4, 6, residual=True), TypeError, "residual must be None or a name"),
    ("residual input channels", lambda: layer(4, 6, residual="input"), VALUE, "needs in_channels == out_channels"),
    ("residual input stride", lambda: layer(4, 4, stride=2, residual="input"), VALUE, "needs stride 1"),
    ("residual input size", lambda: layer(4, 4, padding=0, residual="input"), VALUE, "residual='input' adds x"),
    ("residual depthwise channels", lambda: layer(4, 6, residual="depthwise"), VALUE, "== out_channels, got 4 . 1 and 6"),
    ("functional residual channels", lambda: separable(residual="depthwise"), VALUE, "channels must equal the output's"),
    ("backend unknown", lambda: separable(backend="mkldnn"), VALUE, "'mkldnn'; valid names are 'auto', 'cpu', 'triton'"),
    ("backend a number", lambda: separable(backend=1), TypeError, "backend must be a name, got 1"),
    ("backend which cannot run", lambda: separable(backend="triton"), NotImplementedError, "run on 'cuda'"),
    ("network unknown", lambda: dwsep.networks.create("resnet", num_classes=2), VALUE, "'resnet'.*'mobilenet_v1'"),
    ("network classes", lambda: dwsep.networks.create("mobilenet_v1", num_classes=0), VALUE, "num_classes"),
    ("network option", lambda: dwsep.networks.create("mobilenet_v1", num_classes=2, wide=3), TypeError, "wide"),
    ("network width", lambda: dwsep.networks.create("mobilenet_v1", num_classes=2, width_multiplier=-1), VALUE, "width_m"),
]  # fmt: skip


def test_the_table_is_long_enough():
    assert len(ROWS) >= 60
    assert len({name for name, *_ in ROWS}) == len(ROWS)


@pytest.mark.parametrize("call, kind, message", [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_bad_argument_raises_a_clear_error(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


def test_argument_errors_are_of_both_of_torchs_classes():
    with pytest.raises(ValueError):
        separable(stride=0)
    with pytest.raises(RuntimeError):
        separable(stride=0)


def test_same_classes_as_torch_where_torch_refuses_too():
    for ours, theirs in (
        (lambda: separable(stride=0), lambda: torch.conv2d(X, DW, stride=0, groups=4)),
        (lambda: separable(X.double()), lambda: torch.conv2d(X.double(), DW, groups=4)),
        (lambda: separable(torch.ones(6, 6)), lambda: torch.conv2d(torch.ones(6, 6), DW, groups=4)),
        (lambda: layer(4, 6, padding_mode="x"), lambda: torch.nn.Conv2d(4, 6, 3, padding_mode="x")),
        (lambda: separable(stride="2"), lambda: torch.conv2d(X, DW, stride="2", groups=4)),
    ):
        with pytest.raises(Exception) as expected:
            theirs()
        with pytest.raises(expected.type):
            ours()


@pytest.mark.parametrize("damage", ["missing", "truncated", "not safetensors"])
def test_damaged_checkpoint_is_refused(tmp_path, damage):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    if damage == "truncated":
        save_file({"weight": torch.ones(100)}, path)
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "not safetensors":
        path.write_bytes(gzip.compress(b"something else"))
    kind = FileNotFoundError if damage == "missing" else (ValueError, RuntimeError)
    with pytest.raises(kind, match=re.escape(str(path))):
        dwsep.networks.create("mobilenet_v1", num_classes=10, weights=str(path))


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_data_file_is_refused(tmp_path, damage):
    from dwsep.training import data

    if damage == "truncated":
        whole = gzip.compress(b"\0\0\x08\x03" + (10).to_bytes(4, "big") + (28).to_bytes(4, "big") * 2 + bytes(7840))
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(whole[: len(whole) // 2])
        labels = gzip.compress(b"\0\0\x08\x01" + (10).to_bytes(4, "big") + bytes(10))
        (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(labels)
    kind = FileNotFoundError if damage == "missing" else (ValueError, RuntimeError, EOFError)
    with pytest.raises(kind, match="train-images-idx3-ubyte"):
        data.load_idx(tmp_path, "train")
