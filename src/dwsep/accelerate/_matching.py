"""From the graph of a forward to a program: chains of convolution, batch norm, activation and sum become stages."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import fx, nn

from dwsep.accelerate import _modules, _permuted, _resizing
from dwsep.accelerate._program import ADDITIONS, Call, Product, Program, Stage, Step, Value, inputs_of, values_in
from dwsep.accelerate._tracing import Trace
from dwsep.nn import DepthwiseConv2d


class _Matcher:
    def __init__(self, root: nn.Module, traced: Trace) -> None:
        self.root = root
        self.traced = traced
        self.nodes = list(traced.graph.nodes)
        self.position = {node: index for index, node in enumerate(self.nodes)}
        self.modules = {n: root.get_submodule(str(n.target)) for n in self.nodes if n.op == "call_module"}
        self.values: dict[fx.Node, int] = {}
        self.done: set[fx.Node] = set()
        self.parts: list[nn.Module] = []
        self.skipped: list[nn.Module] = []
        self.steps: list[Step] = []
        self.written: set[int] = set()  # values that calls may write into
        self.count = 0

    def program(self) -> Program:
        outputs: list[Any] = []
        for node in self.nodes:
            if node in self.done:
                continue
            if node.op == "placeholder":
                self.values[node] = self._new()
            elif node.op == "output":
                outputs = list(self._argument(node.args[0]))
            else:
                self._step(node)
        program = Program(
            self.steps, outputs, self.traced.output_spec, self.count, self.traced.inside, self.parts, self.skipped
        )
        kept = set(values_in(program.outputs))
        for step in self.steps:
            if isinstance(step, Call) and step.pools is not None and not self.written.isdisjoint(inputs_of(step)):
                step.pools = None  # its gradient would be that of the tensor after the change
        for index, step in enumerate(self.steps):
            for value in inputs_of(step):
                if value not in kept:
                    program.last_use[value] = index
        return program

    def _new(self) -> int:
        self.count += 1
        return self.count - 1

    def _argument(self, argument: Any) -> Any:
        """An argument with values in place of nodes, in plain containers."""
        if isinstance(argument, fx.Node):
            return Value(self.values[argument])
        if isinstance(argument, tuple):
            entries = [self._argument(entry) for entry in argument]
            return type(argument)(*entries) if hasattr(argument, "_fields") else tuple(entries)
        if isinstance(argument, list):
            return [self._argument(entry) for entry in argument]
        if isinstance(argument, dict):
            return {key: self._argument(entry) for key, entry in argument.items()}
        if isinstance(argument, slice):
            return slice(*(self._argument(side) for side in (argument.start, argument.stop, argument.step)))
        return argument

    def _step(self, node: fx.Node) -> None:
        mixed = self._mixed(node)
        if mixed is not None:
            self._mixed_stage(node, *mixed)
            return
        source = self._source(node)
        module = self.modules.get(node)
        if source is not None and module is not None and not _modules.is_replaced(module):
            if _modules.passes_through(module):
                self.values[node] = self.values[source]
                self.skipped.append(module)
                return
            if _modules.is_conv(module) or _modules.is_norm(module):
                self._stage(node, source)
                return
        dropped = _modules.undropped(node.target, node.args, node.kwargs)
        if dropped is not None:
            self.values[node] = self.values[dropped]
            return
        if source is not None and self._activation(node) is not None:
            stage = Stage(str(node.target), self.values[source], activation=self._activation(node) or "none")
            if module is not None:
                self.parts.append(module)
            self._finish(stage, node, None)
            return
        self._call(node)

    def _source(self, node: fx.Node) -> fx.Node | None:
        """The one value that a module or an elementwise call is applied to."""
        if len(node.args) == 1 and isinstance(node.args[0], fx.Node):
            return node.args[0] if node.op != "call_module" or not node.kwargs else None
        return None

    def _activation(self, node: fx.Node) -> str | None:
        module = self.modules.get(node)
        if module is not None:
            name = None if _modules.is_replaced(module) else _modules.activation_of(module)
            in_place = getattr(module, "inplace", False)
        elif node.op in ("call_function", "call_method"):
            name = _modules.activation_of_call(node.target, node.kwargs)
            in_place = _modules.writes(node, None)
        else:
            return None
        # What else has the tensor may see the change.
        return name if node in self.traced.unseen or not in_place else None

    def _next(self, tail: fx.Node) -> fx.Node | None:
        """The only user of a value, where it applies something to that value alone."""
        if len(tail.users) != 1:
            return None
        user = next(iter(tail.users))
        return user if self._source(user) is tail else None

    def _mixed(self, node: fx.Node) -> tuple[list[fx.Node], fx.Node] | None:
        """Of a split the convolutions that take a part each, all depthwise or all 1x1, and what joins their outputs."""
        sizes = _split_sizes(node)
        if sizes is None or any(user.target is not operator.getitem for user in node.users):
            return None
        taken = {user.args[1]: user for user in node.users if isinstance(user.args[1], int)}
        if len(node.users) != len(sizes) or set(taken) != set(range(len(sizes))):
            return None
        takers = [taken[index] for index in range(len(sizes))]
        convs = [self._next(taker) for taker in takers]
        modules = [self.modules.get(conv) if conv is not None else None for conv in convs]
        if any(m is None or _modules.is_replaced(m) or not _modules.is_conv(m) for m in modules):
            return None
        known: Any = modules
        depthwise = all(_modules.is_depthwise(m) and m.out_channels == m.in_channels for m in known)
        alike = depthwise or all(map(_modules.is_pointwise, known))
        if not alike or [module.in_channels for module in known] != sizes:
            return None
        joins = {user for conv in convs if conv is not None for user in conv.users}
        join = joins.pop() if joins else None
        inside = {*takers, *convs}
        if joins or join is None or _joined(join) != convs or self._written_between(node, join, inside):
            return None
        self.done |= {node for node in (*takers, *convs, join) if node is not None}
        return [conv for conv in convs if conv is not None], join

    def _mixed_stage(self, split: fx.Node, convs: list[fx.Node], join: fx.Node) -> None:
        source = split.args[0]
        assert isinstance(source, fx.Node)
        stage = Stage(str(convs[0].target), self.values[source])
        modules: Any = [self.modules[conv] for conv in convs]
        stage.mixed = tuple(modules)
        self.parts += modules
        self._after_conv(stage, split, join)

    def _stage(self, node: fx.Node, source: fx.Node) -> None:
        stage = Stage(str(node.target), self.values[source])
        module = self.modules[node]
        self.parts.append(module)
        if isinstance(module, (nn.Conv2d, DepthwiseConv2d)):
            conv: Any = module  # of the package's own, what a stage reads of it is named alike
            stage.conv = conv
        self._after_conv(stage, node, node)

    def _after_conv(self, stage: Stage, node: fx.Node, tail: fx.Node) -> None:
        """Add what follows a stage's convolution at ``tail``, or its norm; the stage begins at ``node``."""
        module = self.modules.get(tail)
        unknown: nn.Module | None = None
        if stage.convs:
            tail = self._skip(tail)
            user = self._next(tail)
            norm = self.modules.get(user) if user is not None else None
            if user is not None and norm is not None and not _modules.is_replaced(norm) and _modules.is_norm(norm):
                tail, module = user, norm
                self.done.add(user)
                self.parts.append(norm)
        if isinstance(module, nn.BatchNorm2d):
            stage.norm = module
            if _modules.has_inner_activation(module):
                inner: Any = module.act
                self.parts += [inner, module.drop]  # type: ignore[list-item]
                stage.activation = _modules.activation_of(inner) or "none"
                if stage.activation == "none" and type(inner) is not nn.Identity:
                    unknown = inner
        if unknown is not None:
            value = self._new()
            stage.output = value
            self.steps.append(stage)
            call = Call("module", unknown, (Value(value),), {}, self._new())
            self.steps.append(call)
            self.values[tail] = call.output
            return
        tail = self._skip(tail)
        user = self._next(tail)
        if stage.activation == "none" and user is not None and self._activation(user) is not None:
            stage.activation = self._activation(user) or "none"
            tail = user
            self._take(user)
            tail = self._skip(tail)
        self._finish(stage, tail, node)

    def _take(self, node: fx.Node) -> None:
        self.done.add(node)
        if node in self.modules:
            self.parts.append(self.modules[node])

    def _skip(self, tail: fx.Node) -> fx.Node:
        """Past modules which return what they get."""
        user = self._next(tail)
        while user is not None and user in self.modules:
            module = self.modules[user]
            if _modules.is_replaced(module) or not _modules.passes_through(module):
                break
            self.done.add(user)
            self.skipped.append(module)
            tail, user = user, self._next(user)
        return tail

    def _finish(self, stage: Stage, tail: fx.Node, first: fx.Node | None) -> None:
        """Append a stage that ends at ``tail``, with the sum behind it where the other operand is there already."""
        if first is not None and len(tail.users) == 1:
            user = next(iter(tail.users))
            other = self._given(self._other_operand(user, tail))
            if other is not None and other in self.values and not self._written_between(first, user):
                stage.residual = self.values[other]
                self.done.add(user)
                tail = user
        stage.output = self.values[tail] = self._new()
        self.steps.append(stage)

    def _given(self, node: fx.Node | None) -> fx.Node | None:
        """What a node returns that comes behind modules which return what they get, and is not known yet."""
        while node is not None and node in self.modules and node not in self.values:
            module, source = self.modules[node], self._source(node)
            if source is None or _modules.is_replaced(module) or not _modules.passes_through(module):
                break
            node = source
        return node

    def _other_operand(self, user: fx.Node, tail: fx.Node) -> fx.Node | None:
        plain = user.op == "call_function" and user.target in ADDITIONS and not user.kwargs
        if not plain or len(user.args) != 2:
            return None
        left, right = user.args
        if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or left is right:
            return None
        if left is not tail and _modules.writes(user, None):
            return None  # the sum is written into the shortcut, which others may see
        return right if left is tail else left

    def _written_between(self, first: fx.Node, last: fx.Node, but: Collection[fx.Node | None] = ()) -> bool:
        """Whether anything between two nodes, ``but`` for some, may write into a tensor, so that what comes last must
        wait for its place.
        """
        between = self.nodes[self.position[first] + 1 : self.position[last]]
        between = [node for node in between if node not in self.done and node not in but]
        return any(_modules.writes(node, self.modules.get(node)) for node in between)

    def _call(self, node: fx.Node) -> None:
        if node.op != "call_module" and node.target in _modules.PRODUCTS and not node.kwargs and len(node.args) == 2:
            left, right = node.args
            if isinstance(left, fx.Node) and isinstance(right, fx.Node):
                product = Product(self.values[left], self.values[right], self._new())
                self.values[node] = product.output
                self.steps.append(product)
                return
        args, kwargs = self._argument(node.args), self._argument(node.kwargs)
        if node.op == "get_attr":
            owner, _, attribute = str(node.target).rpartition(".")
            step = Call("attribute", self.root.get_submodule(owner), attribute, {})
        elif node.op == "call_module":
            step = Call("module", self.modules[node], args, kwargs)
        else:
            step = Call("method" if node.op == "call_method" else "function", node.target, args, kwargs)
        step.output = self.values[node] = self._new()
        if node.op != "get_attr":
            step.looks = _modules.looks(step.target)
            step.pools = _modules.pools(step.target, node.args, node.kwargs)
            self._describe(step, node)
        if node.op != "get_attr" and _modules.writes(node, self.modules.get(node)):
            self.written.update(inputs_of(step))
        self.steps.append(step)

    def _describe(self, step: Call, node: fx.Node) -> None:
        """What inference may run on kernels of its own, though it is no stage."""
        module = self.modules.get(node)
        if module is not None:
            if _modules.is_replaced(module):
                return
            if _modules.is_linear(module) and len(node.args) == 1 and not node.kwargs:
                step.linear = module  # type: ignore[assignment]
            if _modules.is_last_norm(module) and len(node.args) == 1 and not node.kwargs:
                step.last_norm = module  # type: ignore[assignment]
            if _modules.is_layer_norm(module) and len(node.args) == 1 and not node.kwargs:
                step.layer_norm = module  # type: ignore[assignment]
        step.permutes = _permuted.dims_of(step.target, node.args, node.kwargs)
        step.gate = _modules.gate_of(step.target, node.args, node.kwargs)
        step.flattens = _modules.flattens(step.target, node.args, node.kwargs)
        step.resizes = _resizing.resizes(step.target)
        parts = _joined(node)
        if parts is not None and all(isinstance(part, fx.Node) for part in parts):
            step.joins = tuple(self.values[part] for part in parts)
        step.cuts = _modules.cuts(step.target, node.args, node.kwargs)
        norm = step.layer_norm is not None or step.last_norm is not None or step.permutes is not None
        named = norm or step.linear is not None or step.gate is not None or step.pools is not None
        if module is not None and (named or step.flattens or step.resizes):
            self.parts.append(module)  # a hook on it must be seen


def _split_sizes(node: fx.Node) -> list[Any] | None:
    """The channels of each part where a node is a split along the channels into parts of given sizes."""
    if node.op not in ("call_function", "call_method") or node.target not in (torch.split, "split"):
        return None
    named = dict(zip(("self", "sizes", "dim"), node.args, strict=False)) | dict(node.kwargs)
    sizes = named.get("sizes", named.get("split_size_or_sections", named.get("split_size")))
    if named.get("dim", 0) != 1 or not isinstance(named.get("self"), fx.Node) or not isinstance(sizes, (list, tuple)):
        return None
    return list(sizes) if all(type(size) is int for size in sizes) else None


def _joined(node: fx.Node) -> list[Any] | None:
    """What a node puts one behind the other along the channels, if that is all it does."""
    if node.op != "call_function" or node.target not in (torch.cat, torch.concat):
        return None
    named = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
    tensors = named.pop("tensors", None)
    return list(tensors) if named == {"dim": 1} and isinstance(tensors, (list, tuple)) else None


def match(root: nn.Module, traced: Trace) -> Program:
    """The program of a module whose forward was read."""
    return _Matcher(root, traced).program()
