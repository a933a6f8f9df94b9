"""Factors per channel behind a convolution, as ConvNeXt's layer scale, made its own: for inference alone."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from dwsep.accelerate import _folding
from dwsep.accelerate._program import Call, Product, Program, Stage, Step, Value, added_value, sequence_of


def absorbed(program: Program) -> Program:
    """The program with the factors, and the sum behind them, as the end of the stage which they follow."""
    users = program.users()
    producers = {step.output: index for index, step in enumerate(program.steps)}
    steps: list[Step | None] = list(program.steps)
    for index, product in enumerate(program.steps):
        if not isinstance(product, Product):
            continue
        for made, factor in ((product.left, product.right), (product.right, product.left)):
            at = producers.get(made, -1)
            stage = steps[at] if at >= 0 else None
            if not isinstance(stage, Stage) or not _takes_a_factor(stage) or users[made] != 1:
                continue
            chain = _factor(program, producers, users, factor, stage)
            between = set(range(at + 1, index)) if at < index else {-1}
            if chain is None or not between <= set(chain):
                continue
            owner = program.steps[chain[0]]
            assert isinstance(owner, Call)
            merged = replace(stage, output=product.output, scale=(owner.target, owner.args))
            behind = program.steps[index + 1] if index + 1 < len(steps) and users[product.output] == 1 else None
            residual = added_value(behind, product.output)
            gone = [*chain, index]
            if behind is not None and residual is not None:
                merged = replace(merged, output=behind.output, residual=residual)
                gone.append(index + 1)
            steps[at] = merged
            for step in gone:
                steps[step] = None
            break
    if steps == program.steps:
        return program
    return sequence_of(program, [step for step in steps if step is not None])


def _takes_a_factor(stage: Stage) -> bool:
    return stage.conv is not None and stage.is_open and _folding.folds(stage.norm)


def _factor(
    program: Program, producers: dict[int, int], users: dict[int, int], value: int, stage: Stage
) -> list[int] | None:
    """The steps that read a parameter with a number for each of a stage's channels, and shape it so that these meet."""
    index = producers.get(value, -1)
    step = program.steps[index] if index >= 0 else None
    if not isinstance(step, Call) or users[value] != 1 or stage.conv is None:
        return None
    channels = stage.conv.out_channels
    if step.kind == "method" and step.target in ("reshape", "view") and not step.kwargs:
        shape = step.args[1] if len(step.args) == 2 and isinstance(step.args[1], (list, tuple)) else step.args[1:]
        if list(shape) not in ([1, -1, 1, 1], [1, channels, 1, 1], [-1, 1, 1], [channels, 1, 1]):
            return None
        source = step.args[0]
        inner = producers.get(source, -1) if isinstance(source, Value) and users[source] == 1 else -1
        parameter = _parameter(program.steps[inner]) if inner >= 0 else None
        return None if parameter is None or parameter.shape != (channels,) else [inner, index]
    parameter = _parameter(step)
    fits = parameter is not None and tuple(parameter.shape) in ((channels, 1, 1), (1, channels, 1, 1))
    return [index] if fits else None


def _parameter(step: Step) -> nn.Parameter | None:
    if not isinstance(step, Call) or step.kind != "attribute" or not isinstance(step.target, nn.Module):
        return None
    found = step.target._parameters.get(step.args)
    return found if isinstance(found, Tensor) else None
