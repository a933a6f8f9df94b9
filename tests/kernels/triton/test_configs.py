"""The table of blocks: what every recorded shape is given can be launched."""

from __future__ import annotations

import pytest

from dwsep.kernels.triton import configs, pointwise_configs
from dwsep.kernels.triton.shapes import shape_of
from tests.problems import recorded


def power_of_two(n: int) -> bool:
    """Whether ``n`` is one."""
    return n > 0 and n & (n - 1) == 0


@pytest.mark.parametrize("element_size", [2, 4])
def test_blocks_of_all_recorded_shapes(element_size):
    seen = 0
    for problem in recorded():
        if len(problem.spatial) > 2 or min(problem.output) < 1:
            continue
        stride, padding, dilation = (tuple(values) for values in problem.geometry)
        size, weight = (problem.batch, problem.channels, *problem.spatial), (problem.channels, 1, *problem.kernel)
        shape, output = shape_of(size, weight, stride, padding, dilation)
        assert output == problem.output
        for table in (configs.channels_last, configs.planes):
            for blocks in (table(shape, False, element_size), table(shape, True, element_size)):
                check(blocks)
                seen += 1
        for table in (configs.channels_last_weight, configs.planes_weight):
            blocks = table(shape, element_size)
            check(blocks)
            assert blocks.tap_rows * blocks.taps <= 64, "sums of more taps would leave the registers"
    assert seen > 10_000


def check(blocks: configs.Blocks) -> None:
    """Sizes that Triton takes, and that its registers hold."""
    assert all(power_of_two(size) for size in (blocks.rows, blocks.groups, blocks.channels, blocks.warps)), blocks
    assert 1 <= blocks.columns <= 8
    assert 1 <= blocks.taps <= 16
    assert blocks.rows * blocks.groups * blocks.channels >= blocks.warps * 32 // 4
    assert not blocks.vectors or blocks.columns in (4, 8)


def test_shape_follows_torch():
    shape, output = shape_of((2, 3, 10, 11), (6, 1, 3, 4), (2, 3), (1, 0, -1, 2), (1, 2))
    assert output == (5, 2)
    assert (shape.multiplier, shape.out_channels, shape.taps) == (2, 6, 12)
    assert (shape.cols.divisor, shape.cols.spacing, shape.cols.inverse) == (1, 2, 2)
    line, output = shape_of((2, 3, 10), (3, 1, 4), (1,), (3, 0), (1,))
    assert output == (10,)
    assert line.rows.kernel == line.rows.size == 1


def test_64_bits_from_2_31_elements_on():
    assert not shape_of((1, 64, 4096, 4096), (64, 1, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1))[0].wide
    assert shape_of((2, 64, 4096, 4096), (64, 1, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1))[0].wide


def test_blocks_of_pointwise_stages():
    for channels in (3, 16, 24, 40, 96, 144, 240, 672, 1152, 3072):
        for outputs in (5, 16, 24, 112, 160, 384, 960, 1280):
            for pixels in (1, 128, 6272, 25_088, 401_408, 1_605_632):
                for size in (2, 4):
                    found = [
                        getattr(pointwise_configs, name)(pixels, channels, outputs, size)
                        for name in ("forward", "input_gradient", "weight_gradient")
                    ]
                    both = pointwise_configs.both_gradients(channels, outputs, size)
                    for blocks in [*found, *filter(None, [both])]:
                        assert all(
                            power_of_two(n) and n >= 16 for n in (blocks.pixels, blocks.channels, blocks.outputs)
                        )
                        assert blocks.warps in (4, 8)
                        assert 2 <= blocks.stages <= 4
                    assert both is None or (both.channels >= channels and both.outputs >= outputs)
                    # Blocks hold all channels where a tensor would else be read again, unless they are many.
                    assert found[0].outputs >= min(outputs, 32)
                    assert found[1].channels >= min(channels, 32)
