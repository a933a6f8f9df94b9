"""Read what a module's forward does, without running it: ``torch.fx`` with modules that must stay whole as leaves."""

from __future__ import annotations

import functools
import inspect
import operator
import sys
import threading
import warnings
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dwsep.accelerate import _layers, _modules

# torch.fx changes nn.Module.__call__ for the whole process while it traces.
_lock = threading.RLock()
_CHECKPOINT_FILE = torch.utils.checkpoint.__file__


_OUT_OF_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}
# Functions, and modules below, which leave what they take as it is and return memory of its own.
_FRESH = {
    operator.add,
    operator.sub,
    operator.mul,
    torch.add,
    torch.sub,
    torch.mul,
    torch.cat,
    torch.mean,
    torch.sigmoid,
    F.adaptive_avg_pool2d,
    F.avg_pool2d,
    F.conv2d,
}
_FRESH_MODULES = (
    nn.Conv2d,
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.Linear,
    nn.AdaptiveAvgPool2d,
    nn.AvgPool2d,
    nn.MaxPool2d,
)


class CannotTrace(Exception):
    """A module's forward cannot be read; the message says why."""


class Trace(NamedTuple):
    """A module's forward as a graph: what it called, the modules looked into, the structure of what it returns; and
    the activations which, in place or not, might as well make tensors of their own.
    """

    graph: fx.Graph
    inside: list[nn.Module]
    output_spec: Any
    unseen: set[fx.Node]


class _Proxy(fx.Proxy):
    """Knows an operation in place from one that is not."""


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name, _function in _modules.IN_PLACE.items():
    setattr(_Proxy, _name, _in_place(_function))


class _Tracer(fx.Tracer):
    def __init__(self, whole: Collection[nn.Module]) -> None:
        super().__init__(autowrap_functions=_foreign_functions())
        self.whole = {id(module) for module in whole}
        self.stack: list[nn.Module] = []
        self.inside: list[nn.Module] = []
        self.output_spec: Any = None

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if id(m) in self.whole or _modules.is_replaced(m):
            return True
        if _modules.is_transparent(m):
            return False
        if isinstance(m, (nn.Conv2d, nn.modules.batchnorm._BatchNorm)) or not _modules.has_work(m):
            return True
        if not isinstance(m, nn.Sequential) and m.__module__.startswith("torch.nn"):
            return True
        return _layers.is_layer(m) and not _layers.is_chain(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        if _inside_checkpoint():
            raise CannotTrace("gradient checkpointing runs its parts")
        if self.is_leaf_module(m, ""):
            return super().call_module(m, forward, args, kwargs)
        self.stack.append(m)
        if not any(m is seen for seen in self.inside):
            self.inside.append(m)
        if _layers.is_chain(m):
            forward = functools.partial(_layers.run_parts, m)
        result = super().call_module(m, forward, args, kwargs)
        self.stack.pop()  # not where it raised: the innermost module left on the stack is the one at fault
        return result

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list]:
        """One placeholder for the first argument; every other takes its default, as in the calls that are sped up."""

        def flat(root: nn.Module, x: Any) -> list[Any]:
            result = _layers.run_parts(root, x) if _layers.is_chain(root) else root_fn(root, x)
            leaves, self.output_spec = pytree.tree_flatten(result)
            return leaves

        return flat, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def create_arg(self, a: Any) -> Any:
        # fx would store a constant in the module, which is not ours to change.
        made = isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and a not in self.tensor_attrs
        if made and not any(a is buffer for buffer in self.root.buffers()):
            raise CannotTrace("it computes with a tensor made on the way")
        return super().create_arg(a)


def _inside_checkpoint() -> bool:
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not trace.__code__:
        if frame.f_code.co_filename == _CHECKPOINT_FILE:
            return True
        frame = frame.f_back
    return False


def _foreign_functions() -> tuple[Callable[..., Any], ...]:
    """Functions which timm asks tracers to leave whole."""
    registry = sys.modules.get("timm.layers._fx")
    return tuple(registry.get_notrace_functions()) if registry is not None else ()


def _leave_memory_alone(graph: fx.Graph, root: nn.Module) -> set[fx.Node]:
    """Have operations in place make tensors of their own where nobody can tell: what they write into was made for them,
    and who else took it has done with it. Returns the activations of which that is true, in place or not, unchanged.
    """
    modules = dict(root.named_modules(remove_duplicate=False))
    position = {node: index for index, node in enumerate(graph.nodes)}

    def module_of(node: fx.Node) -> nn.Module | None:
        return modules.get(str(node.target)) if node.op == "call_module" else None

    def returns_its_input(node: fx.Node) -> bool:  # or some of its channels
        if node.op == "call_function" and (
            _modules.cuts(node.target, node.args, node.kwargs) is not None
            or _modules.undropped(node.target, node.args, node.kwargs) is not None
        ):
            return True
        module = module_of(node)
        if module is not None and _modules.is_replaced(module):
            return False
        if is_activation(node):
            return _modules.writes(node, module)
        if module is None:
            return False
        never = _modules.drops(module) and getattr(module, "drop_prob", getattr(module, "p", 1)) == 0
        return never or _modules.passes_through(module)

    def is_fresh(node: fx.Node) -> bool:
        if node.op == "call_module":
            module = module_of(node)
            if module is None or _modules.is_replaced(module) or getattr(module, "inplace", False):
                return False
            if _modules.drops(module):
                return not returns_its_input(node)
            computes = _modules.is_conv(module) or _modules.activation_of(module) is not None
            return computes or isinstance(module, _FRESH_MODULES)
        if _modules.writes(node, None):
            return False
        return (
            is_activation(node)
            or (node.op == "call_function" and node.target in _FRESH)
            or (node.op == "call_method" and node.target in ("add", "mul", "mean", "sigmoid"))
        )

    def is_activation(node: fx.Node) -> bool:
        if node.op == "call_module":
            module = module_of(node)
            return module is not None and _modules.activation_of(module) is not None
        return node.op != "get_attr" and _modules.activation_of_call(node.target, node.kwargs) is not None

    activations: set[fx.Node] = set()
    for node in graph.nodes:
        computes = node.op == "call_function" and node.target in _OUT_OF_PLACE
        if not computes and not is_activation(node):
            continue
        # The tensor under every name that it has here.
        names, others = [node], []
        while names[-1] is node or returns_its_input(names[-1]):
            source = names[-1].args[0] if names[-1].args else None
            if not isinstance(source, fx.Node):
                break
            names.append(source)
            others += [user for user in names[-1].users if user is not names[-2]]
        if is_fresh(names[-1]) and all(position[user] < position[node] and is_fresh(user) for user in others):
            if computes:
                node.target = _OUT_OF_PLACE[node.target]
            else:
                activations.add(node)
    return activations


def takes_one_tensor(module: nn.Module) -> bool:
    """Whether a forward can be called with one positional argument."""
    try:
        parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in positional:
        return False
    rest = parameters[1:]
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(parameter.default is not parameter.empty or parameter.kind in optional for parameter in rest)


def trace(root: nn.Module, excluded: Collection[nn.Module] = ()) -> Trace:
    """The graph of a module's forward in its present state.

    A module inside whose forward cannot be read becomes one step of the graph; ``excluded`` ones do from the start.

    Raises:
        CannotTrace: the forward of ``root`` itself cannot be read.
    """
    if not takes_one_tensor(root):
        raise CannotTrace("its forward does not take one tensor")
    whole = list(excluded)
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(1 + sum(1 for _ in root.modules())):
            tracer = _Tracer(whole)
            try:
                graph = tracer.trace(root)
            except Exception as error:  # whatever a forward raises when it is given no tensor
                if not tracer.stack:
                    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                    raise CannotTrace(reason) from error
                whole.append(tracer.stack[-1])
                continue
            return Trace(graph, tracer.inside, tracer.output_spec, _leave_memory_alone(graph, root))
    raise CannotTrace("none of its parts can be read")
