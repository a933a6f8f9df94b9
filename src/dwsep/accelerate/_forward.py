"""What ``accelerate_`` puts in a module's instance as its forward: guards, and the program they admit to."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from dwsep import _functorch, functional
from dwsep.accelerate import _inference, _modules, _permuted, _segments, _tracing, _training
from dwsep.accelerate._matching import match
from dwsep.accelerate._native_segment import WholeProgram
from dwsep.accelerate._program import Call, Program, inputs_of
from dwsep.geometry import ConvGeometry
from dwsep.kernels.triton import support

# A module whose state changes at every call is not worth reading again at every call.
_MOST_READINGS = 16
_TRAINING = operator.attrgetter("training")
_REQUIRES_GRAD = Tensor.requires_grad.__get__  # type: ignore[attr-defined]


class _State:
    """All that a program depends on beside tensors: plain attributes, children, hooks, modes, forwards replaced."""

    def __init__(self, root: nn.Module, program: Program) -> None:
        self.places: list[dict[str, Any]] = []
        self.keys: list[str] = []
        for module in (root, *program.inside):
            self._watch(module.__dict__, [k for k, v in module.__dict__.items() if _steers(k, v)])
        for module in (root, *program.inside, *program.parts):
            self._watch(module._modules, list(module._modules))
        for module in program.skipped:
            self._watch(module.__dict__, [key for key in ("training", "p") if key in module.__dict__])
        self.values = [place[key] for place, key in zip(self.places, self.keys, strict=True)]
        self.modules = [*program.inside, *program.parts, *program.skipped]
        self.hooks = [hooks for module in self.modules for hooks in _modules.hooks_of(module)]
        self.handles = -1
        self.dicts = [module.__dict__ for module in (root, *self.modules)]
        self.lengths: list[int] | None = None

    def _watch(self, place: dict[str, Any], keys: list[str]) -> None:
        self.places += [place] * len(keys)
        self.keys += keys

    def _settle(self) -> bool:
        """Before the first use: our own forwards are in place now, so that from here on none may come or change."""
        for place in self.dicts:
            forward = place.get("forward")
            if forward is not None:
                if not is_ours(forward):
                    return False
                self._watch(place, ["forward"])
                self.values.append(forward)
        self.lengths = list(map(len, self.dicts))
        return True

    def is_current(self) -> bool:
        """Whether everything is as it was, asked in a few passes of C."""
        # Whoever registers a hook takes a number, so that as long as none was taken the thousand dictionaries of a
        # network need not be asked.
        handles = RemovableHandle.next_id
        if handles != self.handles:
            if any(self.hooks):
                return False
            self.handles = handles
        if self.lengths is None and not self._settle():
            return False
        try:
            same = all(map(operator.is_, map(operator.getitem, self.places, self.keys), self.values))
        except KeyError:
            return False
        # An attribute that is new in an instance hides the one of its class.
        return same and list(map(len, self.dicts)) == self.lengths


def _steers(key: str, value: Any) -> bool:
    """Whether an attribute may decide which way a forward goes."""
    return not key.startswith("_") and (value is None or type(value) in (bool, float))


class Reading:
    """A module's program in one state, with what was prepared from it."""

    def __init__(self, root: nn.Module, excluded: Collection[nn.Module]) -> None:
        self.program = _permuted.straightened(match(root, _tracing.trace(root, excluded)))
        self.state = _State(root, self.program)
        self.parameters = list(root.parameters())
        self.norms = [stage.norm for stage in self.program.stages() if stage.norm is not None]
        first = [stage.convs for stage in self.program.stages() if stage.convs and stage.input == 0]
        self.channels = {sum(conv.in_channels for conv in convs) for convs in first}
        self.gains = gains(self.program)
        self.infers = self.gains or normalises(self.program)
        # A layer as a convolution was never tried on a GPU.
        self.for_cpu = any(stage.stands_for for stage in self.program.stages())
        self.autocast_dtypes = _inference.dtypes_under_autocast(self.program)
        self.plan: _inference.Plan | None = None
        self.autocast_plan: _inference.Plan | None = None
        self._training: _segments.Plan | None = None

    def wants_gradient(self, x: Tensor) -> bool:
        """Whether autograd has to see the module run."""
        return torch.is_grad_enabled() and (x.requires_grad or any(map(_REQUIRES_GRAD, self.parameters)))

    def is_training(self) -> bool:
        """Whether a norm takes the statistics of the batch and updates the running ones."""
        return any(map(_TRAINING, self.norms))

    def trains_under_autocast(self, x: Tensor) -> bool:
        """Whether it is known what dtypes autocast would give, and float32 can be computed with in its place."""
        return x.dtype in self.autocast_dtypes and all(p.dtype is torch.float32 for p in self.parameters)

    def trains_on_gpu(self, x: Tensor) -> bool:
        """Whether a step with this input, which is on a GPU, runs on stages: in autocast's dtype, or in float32."""
        if not self.gains or self.for_cpu or not self.channels <= {x.shape[1]}:
            return False
        if not (self.wants_gradient(x) or self.is_training()):
            return False
        floats = x.dtype is torch.float32 or torch.is_autocast_enabled("cuda")
        return floats and _training.admits(self.program, cuda=True)

    def training(self) -> _segments.Plan:
        """The plan to train with."""
        if self._training is None:
            self._training = _segments.plan(self.program)
        return self._training

    def inference(self, autocast: bool = False) -> _inference.Plan | None:
        """The plan to run, under autocast or not, made anew where it is stale; ``None`` where there can be none."""
        if autocast and not self.autocast_dtypes:
            return None
        plan = self.autocast_plan if autocast else self.plan
        if plan is None or not plan.is_current():
            try:
                plan = _inference.Plan(self.program, autocast)
            except NotImplementedError:
                plan = None
            if autocast:
                self.autocast_plan = plan
            else:
                self.plan = plan
        return plan


class _InstanceForward:
    """Stands for a module's forward in its instance; who inspects it (``torch.export`` does) finds the original's."""

    module: nn.Module

    @property
    def __code__(self) -> Any:
        return type(self.module).forward.__code__

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(type(self.module).forward.__get__(self.module))


class AcceleratedForward(_InstanceForward):
    """Runs a module's program where the guards allow, its own forward else. Copies and pickles with its module.

    Attributes:
        watch: Called in place of each call of the program, by whoever measures it.
        frozen: Whether the first inference's program stays, whatever becomes of the module's weights.
    """

    watch: _inference.Watch | None = None

    def __init__(self, module: nn.Module, excluded: Collection[nn.Module] = (), *, frozen: bool = False) -> None:
        self.module = module
        self.excluded = list(excluded)
        self.frozen = frozen
        self._forget()

    def _forget(self) -> None:
        self.readings: list[Reading] = []
        self.count = 0
        self.kept: tuple[set[int], _inference.Plan] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "excluded": self.excluded, "frozen": self.frozen}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return type(self.module).forward(self.module, *args, **kwargs)
        if self.kept is not None and len(args) == 1 and not kwargs and self.watch is None:
            whole = self._whole(self.kept[1], args[0])
            if whole is not None:
                return whole.run(args[0])
        if len(args) == 1 and not kwargs and _admits(args[0]):
            x, autocast = args[0], torch.is_autocast_enabled("cpu")
            if not autocast and self.kept is not None and self.kept[0] <= {x.shape[1]} and self._may_keep(x):
                return self.kept[1].run(x, watch=self.watch)
            reading = self.reading()
            if reading is not None and reading.channels <= {x.shape[1]}:
                if reading.wants_gradient(x) or reading.is_training():
                    taken = reading.trains_under_autocast(x) if autocast else x.dtype is torch.float32
                    if reading.gains and taken and _training.is_available() and _training.admits(reading.program):
                        return self._train(reading, x, autocast)
                else:
                    plan = reading.inference(autocast)
                    if plan is not None and plan.takes(x):
                        if autocast:
                            with torch.autocast("cpu", enabled=False):
                                return plan.run(x, watch=self.watch)
                        if self.frozen and self._may_keep(x):
                            self.kept = reading.channels, plan
                        return plan.run(x, watch=self.watch)
        elif len(args) == 1 and not kwargs and _admits_gpu(args[0]) and _training.is_available(args[0]):
            x, reading = args[0], self.reading()
            if reading is not None and reading.trains_on_gpu(x):
                return _training.run(reading.program, reading.training(), x, self.watch)
        return type(self.module).forward(self.module, *args, **kwargs)

    def _train(self, reading: Reading, x: Tensor, autocast: bool) -> Any:
        """A training step's output; under autocast computed in float32, and of the dtypes that it would have."""
        if not autocast:
            return _training.run(reading.program, reading.training(), x, self.watch)
        with torch.autocast("cpu", enabled=False):
            dtypes = reading.autocast_dtypes[x.dtype]
            return _training.run(reading.program, reading.training(), x.float(), self.watch, dtypes)

    def _whole(self, plan: _inference.Plan, x: Any) -> WholeProgram | None:
        """What runs an input such as the kept plan has had before, asked in as few steps as can be: between two calls
        the network itself takes the caches, so that every step here is fetched from memory.
        """
        plain = (
            type(x) is Tensor
            and x.dtype is torch.float32
            and x.is_cpu
            and x.layout is torch.strided
            and not self.module.training
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not _functorch.is_recorded()
            and not _functorch.is_active()
            and not torch_module._has_any_global_hook()
        )
        return plan.wholes.get(x.shape) if plain else None

    def _may_keep(self, x: Tensor) -> bool:
        if self.kept is not None and self.kept[1].dtype is not x.dtype:
            return False
        return not torch.is_grad_enabled() and not self.module.training

    def reading(self) -> Reading | None:
        """The module's program in its present state; ``None`` where it cannot be read."""
        readings = self.readings
        for index, reading in enumerate(readings):
            if reading.state.is_current():
                if index:
                    readings.insert(0, readings.pop(index))
                    reading.plan = reading.autocast_plan = None
                return reading if reading.infers else None
        if self.count >= _MOST_READINGS:
            return None
        self.count += 1
        try:
            reading = self.read()
        except _tracing.CannotTrace:
            return None
        return reading if reading.infers else None

    def read(self) -> Reading:
        """Read the module's forward anew."""
        reading = Reading(self.module, self.excluded)
        self.readings.insert(0, reading)
        del self.readings[4:]
        return reading


class DepthwiseForward(_InstanceForward):
    """Runs one depthwise convolution on whichever kernel is the faster, where no program runs it."""

    module: nn.Conv2d

    def __init__(self, module: nn.Conv2d) -> None:
        self.module = module
        self._geometry: tuple[Any, ConvGeometry] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "_geometry": None}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        conv: Any = self.module
        alone = len(args) == 1 and not kwargs and not torch.compiler.is_compiling()
        if not alone or not (self._runs_on_cpu(args[0]) or self._trains_on_gpu(args[0])):
            return type(conv).forward(conv, *args, **kwargs)
        key = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
        if not _modules.is_conv(conv) or conv.groups != conv.in_channels:
            return type(conv).forward(conv, *args, **kwargs)
        if self._geometry is None or self._geometry[0] != key:
            self._geometry = key, _modules.geometry_of(conv)
        return functional.depthwise_conv(args[0], conv.weight, conv.bias, self._geometry[1], "none", "auto")

    def _runs_on_cpu(self, x: Any) -> bool:
        if not _admits(x, (self.module.in_channels,)) or torch.is_autocast_enabled("cpu"):
            return False
        return x.dtype is torch.float32 and self.module.weight.dtype is torch.float32

    def _trains_on_gpu(self, x: Any) -> bool:
        weight: Tensor = self.module.weight
        if not (_admits_gpu(x) and weight.device == x.device and x.shape[1] == self.module.in_channels):
            return False
        alike = x.dtype is weight.dtype or torch.is_autocast_enabled("cuda")
        return alike and torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad) and support.runs(x)


def gains(program: Program) -> bool:
    """Whether a program is worth running: a depthwise convolution in it has something to be fused with, or two
    pointwise ones have an activation between them, as behind ConvNeXt's.
    """
    users = program.users()
    ends = {s.input for s in program.stages() if s.convs and _modules.is_pointwise(s.convs[0])}
    for stage in program.stages():
        if not stage.convs:
            continue
        alone = stage.norm is None and stage.activation == "none"
        if _modules.is_depthwise(stage.convs[0]):
            if not alone or (stage.output in ends and users[stage.output] == 1):
                return True
        elif _modules.is_pointwise(stage.convs[0]) and not alone and stage.output in ends:
            return True
    return False


def normalises(program: Program) -> bool:
    """Whether a layer norm follows a depthwise convolution: in inference they run together."""
    made = {s.output for s in program.stages() if s.convs and _modules.is_depthwise(s.convs[0])}
    norms = [step for step in program.steps if isinstance(step, Call) and step.layer_norm is not None]
    return any(not made.isdisjoint(inputs_of(norm)) for norm in norms)


def _admits(x: Any, channels: Collection[int] | None = None) -> bool:
    """Whether an input, and what surrounds the call, leaves the choice of kernels to us."""
    return (
        type(x) is Tensor
        and not _functorch.is_recorded()  # first: sizes are tensors while torch.jit traces
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.is_cpu
        and x.dim() == 4
        and x.layout is torch.strided
        and x.numel() > 0
        and (channels is None or x.shape[1] in channels)
        and (not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") is torch.bfloat16)
        and not _functorch.is_active()
        and not torch_module._has_any_global_hook()
    )


def _admits_gpu(x: Any) -> bool:
    """Whether an input on a GPU, and what surrounds the call, leaves the choice of kernels to us."""
    return (
        type(x) is Tensor
        and x.is_cuda
        and not _functorch.is_recorded()
        and x.dim() == 4
        and x.layout is torch.strided
        and x.numel() > 0
        and not _functorch.is_active()
        and not torch_module._has_any_global_hook()
    )


def is_ours(forward: Any) -> bool:
    """Whether a module's instance forward was put there by ``accelerate_``."""
    return isinstance(forward, (AcceleratedForward, DepthwiseForward))
