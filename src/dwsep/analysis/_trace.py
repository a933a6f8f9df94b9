"""One run of a network, operator by operator: what each computed and moved, and the module that asked for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dwsep.analysis import _formulas
from dwsep.analysis._receptive import Field, Fields

Call = tuple[str, int]  # a module's name, and a number of its own for every call


@dataclass
class Record:
    """One operator that ran, with its backward's share where one ran.

    Attributes:
        calls: The modules it ran in, from the outermost to the innermost.
        op: Its name, without namespace and overload.
        kind: What kind of work it is.
        macs: Multiply-adds.
        read: Bytes of its operands, each counted once.
        written: Bytes of its results.
        parameters: Elements of the parameters among its operands.
        input_shape: Shape of the first tensor it takes.
        output_shape: Shape of the first tensor it returns.
        details: What else is worth knowing of a convolution.
        receptive_field: Of its result; None where that is not defined.
        channels_last: Whether its input lies channels last.
        began: How many calls of modules had begun when it ran.
        backward_macs: Multiply-adds of its backward.
        backward_bytes: Bytes that its backward reads and writes.
        saved: Bytes that its module saved for the backward, by eager PyTorch.
        saved_fused: The same where norms and activations are computed again in the backward.
    """

    calls: tuple[Call, ...]
    op: str
    kind: str
    macs: int
    read: int
    written: int
    parameters: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    details: dict[str, Any] = field(default_factory=dict)
    receptive_field: Field | None = None
    channels_last: bool = False
    began: int = 0
    backward_macs: int = 0
    backward_bytes: int = 0
    saved: int = 0
    saved_fused: int = 0


def key_of(tensor: Tensor) -> int:
    """Tells memory from other memory, on "meta" too, where it has no address; for as long as it is alive."""
    return tensor.untyped_storage()._cdata


def bytes_of(tensor: Tensor) -> int:
    """Bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors among nested arguments or results."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def is_view(func: Any, name: str) -> bool:
    """Whether an operator moves no data: its result is another name for an operand's memory, or not yet written."""
    returns = func._schema.returns
    alias = returns[0].alias_info if returns else None
    return _formulas.is_free(name) or not returns or (alias is not None and not alias.is_write)


def describe(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> tuple[str, int, dict[str, Any]]:
    """Kind, multiply-adds and details of an operator's call."""
    namespace, _, name = func._schema.name.partition("::")
    formula = _formulas.FORMULAS.get(f"{namespace}::{name}")
    if formula is None:
        return _formulas.kind_of(name), 0, {}
    shapes = pytree.tree_map(lambda leaf: tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    out = pytree.tree_map(lambda leaf: tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf, result)
    macs = formula(*shapes[0], out=out, **shapes[1])
    kind, details = _conv_details(namespace, name, shapes[0])
    return kind, macs, details


def _conv_details(namespace: str, name: str, args: Sequence[Any]) -> tuple[str, dict[str, Any]]:
    if name in ("convolution", "_convolution"):
        _, weight, _, stride, padding, dilation, transposed, _, groups, *_ = args
        sizes = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
        details = {**sizes, "kernel_size": tuple(weight[2:]), "groups": groups, "transposed": transposed}
        return _conv_kind(args[0], weight, groups, transposed), details
    if namespace == "dwsep" and name == "depthwise_conv":
        stride, pads, dilation = (tuple(entry) for entry in args[3:6])
        sizes = {"stride": stride, "padding": pads, "dilation": dilation, "kernel_size": tuple(args[1][2:])}
        return "depthwise", {**sizes, "groups": args[0][1], "transposed": False}
    if namespace == "dwsep" and name.startswith("separable"):
        kernel, first = (args[1][2:], 5) if name == "separable_conv" else (args[4], 5)
        stride, pads, dilation = (tuple(entry) for entry in args[first : first + 3])
        sizes = {"stride": stride, "padding": pads, "dilation": dilation, "kernel_size": tuple(kernel)}
        return "separable", {**sizes, "groups": args[0][1], "transposed": False}
    if namespace == "dwsep":
        return ("pointwise" if "pointwise" in name else "depthwise"), {}
    if "attention" in name:
        return "attention", {}
    return "linear" if name in ("mm", "addmm") else "matmul", {}


def _conv_kind(x: Sequence[int], weight: Sequence[int], groups: int, transposed: bool) -> str:
    channels = weight[0] if transposed else x[1]
    if groups == channels > 1:
        return "depthwise"
    if transposed:
        return "transposed"
    if groups > 1:
        return "grouped"
    return "pointwise" if math.prod(weight[2:]) == 1 else "dense"


def _is_gated(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether a product is one of every channel (N, C, H, W) with a factor (N, C, 1, 1)."""
    large, small = max(shapes, key=math.prod), min(shapes, key=math.prod)
    return len(large) == 4 and small == (*large[:2], 1, 1) and large != small


class Tracer(TorchDispatchMode):
    """Notes every operator that runs, forward and backward.

    It must be the innermost mode. As a mode is active, layers and accelerated networks run the parts that they are made
    of, one by one: what is noted is the network as it is written down.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(module): name for name, module in model.named_modules()}
        self.modules = dict(model.named_modules())
        self.records: list[Record] = []
        self.stack: list[Call] = []
        self.all_calls: list[Call] = []
        self.count = 0
        self.fields = Fields()
        self.own = {key_of(t): t for t in (*model.parameters(), *model.buffers())}
        self.parameters = {id(parameter): parameter for parameter in model.parameters()}
        # By memory: the record that made it, and the kinds of those that took it since.
        self.makers: dict[int, Record] = {}
        self.takers: dict[int, set[str]] = {}
        self.backward_of: Record | None = None
        self.in_backward = False
        self.on_enter: Callable[[Any], None] | None = None
        self.on_exit: Callable[[Any], None] | None = None

    def innermost(self) -> nn.Module | None:
        """The module that runs."""
        return self.modules[self.stack[-1][0]] if self.stack else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        if self.in_backward:
            self._note_backward(func, name, args, kwargs, result)
        elif not is_view(func, name):
            self._note(func, name, args, kwargs, result)
        else:
            self.fields.view(args, result)
        return result

    def _note(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        taken, made = tensors_in((args, kwargs)), tensors_in(result)
        if not taken or not made:
            return  # a constant
        kind, macs, details = describe(func, args, kwargs, result)
        if name.startswith("mul") and _is_gated([tuple(t.shape) for t in taken]):
            kind = "gate"
        distinct = {(key_of(t), t.storage_offset(), tuple(t.shape)): t for t in taken}
        activations = [t for t in taken if key_of(t) not in self.own]
        source = activations[0] if activations else taken[0]
        record = Record(
            calls=tuple(self.stack),
            op=name,
            kind=kind,
            macs=macs,
            read=sum(map(bytes_of, distinct.values())),
            written=sum(map(bytes_of, made)),
            parameters=sum(t.numel() for t in distinct.values() if id(t) in self.parameters),
            input_shape=tuple(source.shape),
            output_shape=tuple(made[0].shape),
            details=details,
            receptive_field=self.fields.after(kind, name, args, kwargs, result, details),
            began=self.count,
            channels_last=source.dim() == 4 and source.is_contiguous(memory_format=torch.channels_last),
        )
        if name == "embedding":
            record.read = bytes_of(made[0]) + bytes_of(taken[-1])
        self.records.append(record)
        if name != "clone":  # in-place operators clone what they overwrite, for their backward
            for tensor in taken:
                self.takers.setdefault(key_of(tensor), set()).add("batch norm" if "batch_norm" in name else kind)
        for tensor in made:
            key = key_of(tensor)
            if all(key != key_of(t) for t in taken):
                self.takers[key] = set()
            # a copy is what was copied, as far as its origin goes
            self.makers[key] = self.makers.get(key_of(taken[0]), record) if name == "clone" else record

    def _note_backward(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        if self.backward_of is None or is_view(func, name):
            return
        taken, made = tensors_in((args, kwargs)), tensors_in(result)
        if not taken or not made:
            return
        distinct = {(key_of(t), t.storage_offset(), tuple(t.shape)): t for t in taken}
        self.backward_of.backward_macs += describe(func, args, kwargs, result)[1]
        self.backward_of.backward_bytes += sum(map(bytes_of, distinct.values())) + sum(map(bytes_of, made))

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Knows which module runs, by hooks on all of them."""
        handles = []

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self.on_enter is not None:
                self.on_enter((args, kwargs))
            self.count += 1
            self.stack.append((self.names[id(module)], self.count))
            self.all_calls.append(self.stack[-1])

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self.on_exit is not None:
                self.on_exit(output)
            last = self.records[-1] if self.records else None
            if isinstance(output, Tensor) and last is not None and last.calls == tuple(self.stack):
                last.output_shape = tuple(output.shape)  # also behind a change of shape, which moves nothing
            self.stack.pop()

        try:
            for module in model.modules():
                handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                handles.append(module.register_forward_hook(leave, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
