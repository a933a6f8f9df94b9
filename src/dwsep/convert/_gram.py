"""Second moments of a convolution's input patches, streamed: memory depends on the layer, not on the data."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dwsep.convert.fit import Moments
from dwsep.errors import ArgumentError
from dwsep.geometry import ConvGeometry

_CHUNK_BYTES = 32 << 20  # of patches at a time
_SHRINKAGE = 0.05


class PatchMoments:
    """Sums of p and p p^T over patches p, (C * T,), of the inputs it is shown.

    Args:
        channels: C of the input.
        geometry: of the convolution.
        padding_mode: as in ``torch.nn.Conv2d``.
        device: of the sums, which are float64.

    Cost: (C * T)^2 * 8 bytes; C * T * C * T macs per patch.

    Example:
        >>> sums = PatchMoments(2, ConvGeometry.make(2, 3, padding=1))
        >>> sums.add(torch.randn(4, 2, 8, 8), at_most=100)
        >>> sums.count, sums.moments().gram.shape
        (100, torch.Size([18, 18]))
    """

    def __init__(
        self, channels: int, geometry: ConvGeometry, padding_mode: str = "zeros", device: object = None
    ) -> None:
        self.channels, self.geometry, self.padding_mode = channels, geometry, padding_mode
        self.size = channels * geometry.taps
        self.products = torch.zeros(self.size, self.size, dtype=torch.float64, device=device)  # type: ignore[arg-type]
        self.sums = torch.zeros(self.size, dtype=torch.float64, device=device)  # type: ignore[arg-type]
        self.count = 0
        self._generator = torch.Generator().manual_seed(0)  # which patches are taken repeats from run to run

    @torch.no_grad()
    def add(self, x: Tensor, *, at_most: int | None = None) -> None:
        """Add the patches of an input, (N, C, *spatial) or unbatched, or ``at_most`` of them drawn at random."""
        if x.dim() == self.geometry.ndim + 1:
            x = x.unsqueeze(0)
        if x.shape[1] != self.channels:
            raise ArgumentError(f"x must have {self.channels} channels, got shape {tuple(x.shape)}")
        spatial = tuple(x.shape[2:])
        outputs = self.geometry.output_size(spatial)
        x = self._padded(x.detach())
        total = len(x) * math.prod(outputs)
        if at_most is None or at_most >= total:
            chosen = torch.arange(total)
        else:
            chosen = torch.randint(total, (at_most,), generator=self._generator)
        rows = max(1, _CHUNK_BYTES // (4 * self.size))
        for start in range(0, len(chosen), rows):
            patches = self._patches(x, outputs, chosen[start : start + rows].to(x.device))
            wide = patches.to(self.sums.device, torch.float64 if patches.dtype == torch.float64 else torch.float32)
            self.products += wide.mT @ wide
            self.sums += wide.sum(0)
            self.count += len(wide)

    def _padded(self, x: Tensor) -> Tensor:
        flat = [side for pair in reversed(self.geometry.pads(x.shape[2:])) for side in pair]
        if not any(flat):
            return x
        return F.pad(x, flat) if self.padding_mode == "zeros" else F.pad(x, flat, mode=self.padding_mode)

    def _patches(self, x: Tensor, outputs: tuple[int, ...], chosen: Tensor) -> Tensor:
        """Patches (len(chosen), C * T) at positions numbered over the batch and the output."""
        g = self.geometry
        index: list[Tensor] = []
        for axis in reversed(range(g.ndim)):
            place = chosen % outputs[axis]
            chosen = chosen // outputs[axis]
            taps = torch.arange(g.kernel_size[axis], device=x.device) * g.dilation[axis]
            index.insert(0, (place * g.stride[axis])[:, None] + taps)  # (rows, taps of the axis)
        grids = [
            one.view(len(one), *(one.shape[1] if other == axis else 1 for other in range(g.ndim)))
            for axis, one in enumerate(index)
        ]
        batch = chosen.view(-1, *(1,) * g.ndim)
        patches = x.movedim(1, -1)[(batch, *grids)]  # (rows, *taps, C)
        return patches.movedim(-1, 1).reshape(len(patches), self.size)

    def moments(self, *, centred: bool = True) -> Moments:
        """The moments of the patches seen so far, pulled a little towards independent elements where they are few.

        Args:
            centred: whether the mean is taken out, which is right where a bias or a batch norm puts it back.
        """
        if not self.count:
            raise ArgumentError("no input was seen")
        mean = self.sums / self.count
        gram = self.products / self.count
        if centred:
            gram = gram - torch.outer(mean, mean)
        share = min(1.0, 1e-4 + _SHRINKAGE * self.size / self.count)
        power = gram.diagonal().mean()
        gram = (1 - share) * gram
        gram.diagonal().add_(share * power)
        return Moments(gram, mean)
