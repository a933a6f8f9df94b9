"""One option for each layer, so that the values add up to the least within a limit on the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_STEPS = 8192  # into which the limit is divided; a weight is rounded up, so that the limit holds


def choose(
    values: Sequence[Sequence[float]], weights: Sequence[Sequence[float]], limit: float
) -> tuple[int, ...] | None:
    """Pick an option per layer: least sum of values whose sum of weights is at most ``limit``.

    Args:
        values: per layer, per option, what to keep small.
        weights: the same shape, at least 0: what is limited.
        limit: on the sum of the chosen weights.

    Returns:
        The option's number per layer; ``None`` if no choice keeps the limit. Within 1 / 8192 of the limit per layer
        exact: what keeps the limit by less than that may be missed.

    Cost: layers * options * 8192 additions.

    Example:
        >>> choose([[0, 5], [0, 3]], [[4, 1], [4, 1]], 5)
        (0, 1)
    """
    least = [min(row) for row in weights]
    room = limit - sum(least)
    if room < 0:
        return None
    # Only what an option weighs above its layer's lightest is counted, so that the lightest choice is never lost.
    unit = room / _STEPS
    best = torch.zeros(_STEPS + 1, dtype=torch.float64)  # by steps used at most
    picks: list[torch.Tensor] = []
    for row_values, row_weights, low in zip(values, weights, least, strict=True):
        table = torch.full((len(row_values), _STEPS + 1), float("inf"), dtype=torch.float64)
        for option, (value, weight) in enumerate(zip(row_values, row_weights, strict=True)):
            extra = weight - low
            steps = 0 if extra <= 0 else _STEPS + 1 if extra > room else int(-(-extra // unit))
            if steps <= _STEPS:
                table[option, steps:] = best[: _STEPS + 1 - steps] + value
        best, pick = table.min(0)
        picks.append(pick)
        # How many steps an option used is computed again on the way back.
    left, chosen = _STEPS, []
    for row_weights, low, pick in zip(reversed(weights), reversed(least), reversed(picks), strict=True):
        option = int(pick[left])
        chosen.append(option)
        extra = row_weights[option] - low
        left -= 0 if extra <= 0 else int(-(-extra // unit))
    return tuple(reversed(chosen))
