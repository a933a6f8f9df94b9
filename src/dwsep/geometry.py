"""Shape arithmetic of convolutions: output sizes, padding rules, receptive fields. Nothing else computes a shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dwsep.errors import ArgumentError, unknown_name

Pair = tuple[int, int]
Padding = str | int | Sequence[int | Sequence[int]]

PADDING_NAMES = ("same", "same_tf", "valid", "causal")
# Sizes and strides travel as 64-bit integers, but products of two of them must not overflow.
LARGEST = 2**31 - 1


def check_int(argument: str, value: object, *, low: int, high: int = LARGEST) -> int:
    """``value`` as an int within ``low`` .. ``high``, or an error that names ``argument``."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{argument} must be an integer, got {value!r} of type {type(value).__name__}")
    number = value.__index__()  # type: ignore[attr-defined]
    if not low <= number <= high:
        raise ArgumentError(f"{argument} must be between {low} and {high}, got {number}")
    return number


def _per_axis(argument: str, value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)) or (not hasattr(value, "__index__") and not isinstance(value, Sequence)):
        raise TypeError(f"{argument} must be an integer or {ndim} integers, got {value!r}")
    if isinstance(value, Sequence):
        if len(value) == 1:
            value = tuple(value) * ndim
        if len(value) != ndim:
            raise ArgumentError(f"{argument} must have 1 or {ndim} entries, got {len(value)}: {tuple(value)!r}")
        return tuple(check_int(argument, entry, low=1) for entry in value)
    return (check_int(argument, value, low=1),) * ndim


def _explicit_padding(padding: Padding, ndim: int) -> tuple[Pair, ...]:
    if hasattr(padding, "__index__"):
        both = check_int("padding", padding, low=0)
        return ((both, both),) * ndim
    if not isinstance(padding, Sequence):
        raise TypeError(f"padding must be a name, an integer, or one entry per axis, got {padding!r}")
    entries = tuple(padding)
    if ndim == 1 and len(entries) == 2 and all(hasattr(entry, "__index__") for entry in entries):
        entries = (entries,)
    if len(entries) == 1:
        entries = entries * ndim
    if len(entries) != ndim:
        raise ArgumentError(f"padding must have 1 or {ndim} entries, got {len(entries)}: {padding!r}")
    pairs: list[Pair] = []
    for entry in entries:
        if isinstance(entry, Sequence) and not isinstance(entry, (str, bytes)):
            if len(entry) != 2:
                raise ArgumentError(f"padding: an axis takes an integer or a (low, high) pair, got {entry!r}")
            pairs.append((check_int("padding", entry[0], low=-LARGEST), check_int("padding", entry[1], low=-LARGEST)))
        elif isinstance(entry, int) or hasattr(entry, "__index__"):
            both = check_int("padding", entry, low=0)
            pairs.append((both, both))
        else:
            raise TypeError(f"padding: an axis takes an integer or a (low, high) pair, got {entry!r}")
    return tuple(pairs)


@dataclass(frozen=True)
class ConvGeometry:
    """Kernel, stride, dilation and padding of a convolution over ``ndim`` spatial axes.

    Build it with :meth:`make`, which normalises and checks. ``padding`` holds a (low, high) pair per axis, in elements;
    a negative entry crops. It is ``None`` for the rule ``"same_tf"``, whose amounts depend on the input size.

    Example:
        >>> geometry = ConvGeometry.make(2, kernel_size=3, stride=2, padding="same", dilation=1)
        >>> geometry.output_size((224, 112))
        (112, 56)
        >>> geometry.pads((224, 112))
        ((1, 1), (1, 1))
    """

    ndim: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[Pair, ...] | None
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        fields = (self.ndim, self.kernel_size, self.stride, self.dilation, self.padding)
        object.__setattr__(self, "_hash", hash(fields))

    def __hash__(self) -> int:
        return self._hash  # computed once: the dispatch cache looks a geometry up at every call

    @classmethod
    def make(
        cls,
        ndim: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dilation: int | Sequence[int] = 1,
    ) -> ConvGeometry:
        """Normalise the arguments of a convolution as users write them.

        Args:
            ndim: number of spatial axes, 1 to 3.
            kernel_size: taps per axis, one integer or one per axis.
            stride: step of the window per axis, in elements.
            padding: ``"same"`` keeps ceil(n / stride) with dilation * (kernel - 1) elements, the odd one at the high
                side; ``"same_tf"`` is TensorFlow's rule; ``"valid"`` pads nothing; ``"causal"`` (1d) pads the low side
                only; an integer; or per axis an integer or a (low, high) pair, where negative crops.
            dilation: distance of neighbouring taps per axis, in elements.

        Raises:
            ArgumentError: a value out of its range, a wrong number of entries, an unknown padding name.
            TypeError: not an integer.
        """
        kernel = _per_axis("kernel_size", kernel_size, ndim)
        steps = _per_axis("stride", stride, ndim)
        spread = _per_axis("dilation", dilation, ndim)
        for size, distance in zip(kernel, spread, strict=True):
            if distance * (size - 1) + 1 > LARGEST:
                raise ArgumentError(
                    f"dilation * (kernel_size - 1) + 1 must be at most {LARGEST}, got dilation {distance} and "
                    f"kernel_size {size}"
                )
        if isinstance(padding, str):
            pairs = cls._named_padding(padding, ndim, kernel, spread)
        else:
            pairs = _explicit_padding(padding, ndim)
        return cls(ndim, kernel, steps, spread, pairs)

    @staticmethod
    def _named_padding(
        name: str, ndim: int, kernel: tuple[int, ...], dilation: tuple[int, ...]
    ) -> tuple[Pair, ...] | None:
        totals = tuple(d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
        if name == "same":
            return tuple((total // 2, total - total // 2) for total in totals)
        if name == "valid":
            return ((0, 0),) * ndim
        if name == "causal":
            if ndim != 1:
                raise ArgumentError(f"padding='causal' needs one spatial axis, got {ndim}")
            return ((totals[0], 0),)
        if name == "same_tf":
            return None
        raise unknown_name("padding", name, PADDING_NAMES)

    @property
    def effective_kernel_size(self) -> tuple[int, ...]:
        """Extent of the dilated kernel per axis, in elements."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True))

    @property
    def taps(self) -> int:
        """Number of weights of one channel's kernel."""
        product = 1
        for size in self.kernel_size:
            product *= size
        return product

    def pads(self, input_size: Sequence[int]) -> tuple[Pair, ...]:
        """(low, high) padding per axis, in elements, for an input of ``input_size`` elements per axis."""
        if self.padding is not None:
            return self.padding
        pairs = []
        for n, extent, s in zip(input_size, self.effective_kernel_size, self.stride, strict=True):
            total = (-(-n // s) - 1) * s + extent - n
            total = max(total, 0)
            pairs.append((total // 2, total - total // 2))
        return tuple(pairs)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """Elements per axis of the output for an input of ``input_size`` elements per axis.

        Raises:
            ArgumentError: an axis would have no output, or its padding crops more than there is.
        """
        result = []
        for axis, (n, (low, high), extent, s) in enumerate(
            zip(input_size, self.pads(input_size), self.effective_kernel_size, self.stride, strict=True)
        ):
            if n + min(low, 0) + min(high, 0) < 1:
                raise ArgumentError(
                    f"padding {(low, high)} crops the whole input of size {n} along spatial axis {axis}"
                )
            room = n + low + high - extent
            if room < 0:
                raise ArgumentError(
                    f"output size must be at least 1: along spatial axis {axis} the padded input has "
                    f"{n + low + high} elements ({n} with padding {(low, high)}), the dilated kernel {extent}"
                )
            result.append(room // s + 1)
        return tuple(result)

    def receptive_field(self, below: Sequence[tuple[int, int]] | None = None) -> tuple[tuple[int, int], ...]:
        """(extent, jump) per axis, in elements of the first input, after a layer of this geometry.

        Args:
            below: (extent, jump) per axis of the layer's input; ``None`` for the network's input, (1, 1).

        Example:
            >>> first = ConvGeometry.make(1, 3, stride=2, padding="same")
            >>> second = ConvGeometry.make(1, 3, padding="same", dilation=4)
            >>> second.receptive_field(first.receptive_field())
            ((19, 2),)
        """
        below = below or ((1, 1),) * self.ndim
        return tuple(
            (extent + (wide - 1) * jump, jump * s)
            for (extent, jump), wide, s in zip(below, self.effective_kernel_size, self.stride, strict=True)
        )
