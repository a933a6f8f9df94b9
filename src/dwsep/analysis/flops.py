"""Formulas of this package's operators for ``torch.utils.flop_counter``: importing this module registers them.

``dwsep.analyze`` does so as well. They are not registered by ``import dwsep``, because torch's counter imports Triton,
which takes longer than all of dwsep.

Example:
    >>> import torch, dwsep.analysis.flops
    >>> from torch.utils.flop_counter import FlopCounterMode
    >>> with FlopCounterMode(display=False) as counter:
    ...     _ = dwsep.functional.depthwise_conv2d(torch.ones(1, 4, 8, 8), torch.ones(4, 1, 3, 3))
    >>> counter.get_total_flops() == 2 * 4 * 9 * 6 * 6
    True
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from dwsep.analysis._formulas import FORMULAS, Formula


def _register(name: str, formula: Formula) -> None:
    def flops(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return 2 * formula(*args, out=out_shape, **kwargs)

    register_flop_formula(getattr(torch.ops.dwsep, name))(flops)


for _name, _formula in FORMULAS.items():
    _namespace, _, _op = _name.partition("::")
    if _namespace == "dwsep" and getattr(torch.ops.dwsep, _op) not in flop_registry:
        _register(_op, _formula)
