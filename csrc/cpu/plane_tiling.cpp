#include "cpu/plane_tiling.h"

#include <algorithm>
#include <limits>

namespace dwsep {
namespace {

// Grows a range to hold another.
struct Hull {
  int64_t begin = std::numeric_limits<int64_t>::max();
  int64_t end = std::numeric_limits<int64_t>::min();

  void add(int64_t first, int64_t stop) {
    begin = std::min(begin, first);
    end = std::max(end, stop);
  }
  Range range() const { return begin < end ? Range{begin, end} : Range{0, 0}; }
};

Range gradient_range(const ConvAxis& axis, const AxisTile& tile, bool clip) {
  Hull hull;
  if (tile.output.size() > 0) hull.add(tile.output.begin, tile.output.end);
  if (tile.input.size() > 0) {
    for (int64_t tap = 0; tap < axis.kernel; ++tap) {
      const int64_t shift = axis.pad_low - tap * axis.dilation;
      const int64_t first = ceil_div(tile.input.begin + shift, axis.stride);
      const int64_t stop = floor_div(tile.input.end - 1 + shift, axis.stride) + 1;
      const int64_t inside_first = std::max<int64_t>(first, 0), inside_stop = std::min(stop, axis.output);
      if (inside_first >= inside_stop) continue;
      hull.add(clip ? inside_first : first, clip ? inside_stop : stop);
    }
  }
  return hull.range();
}

void set_x_range(const ConvAxis& axis, AxisTile& tile, bool clip, bool recompute) {
  const Range out = recompute
                        ? Range{std::max<int64_t>(tile.gradient.begin, 0), std::min(tile.gradient.end, axis.output)}
                        : tile.output;
  Hull hull, taps;
  for (int64_t tap = 0; tap < axis.kernel && out.size() > 0; ++tap) {
    const int64_t first = axis.position(out.begin, tap), stop = axis.position(out.end - 1, tap) + 1;
    const int64_t inside_first = std::max<int64_t>(first, 0), inside_stop = std::min(stop, axis.input);
    if (inside_first >= inside_stop) continue;
    hull.add(clip ? inside_first : first, clip ? inside_stop : stop);
    taps.add(tap, tap + 1);
  }
  tile.x = hull.range();
  tile.taps = taps.range();
}

}  // namespace

int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }
int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

ConvAxis conv_axis(const ConvProblem& problem, int axis) {
  return {problem.input[axis],  problem.output[axis],   problem.kernel[axis],
          problem.stride[axis], problem.dilation[axis], problem.pad_low[axis]};
}

Range ConvAxis::under(int64_t begin, int64_t end) const {
  return {std::max<int64_t>(0, position(begin, 0)), std::min(input, position(end - 1, kernel - 1) + 1)};
}

Range ConvAxis::taps_inside(int64_t out) const {
  const int64_t first = position(out, 0);
  const int64_t begin = std::max<int64_t>(0, ceil_div(-first, dilation));
  const int64_t end = std::min(kernel, floor_div(input - 1 - first, dilation) + 1);
  return {begin, std::max(begin, end)};
}

Range ConvAxis::taps_reaching(int64_t in) const {
  const int64_t at = in + pad_low;
  const int64_t begin = std::max<int64_t>(0, ceil_div(at - (output - 1) * stride, dilation));
  const int64_t end = std::min(kernel, floor_div(at, dilation) + 1);
  return {begin, std::max(begin, end)};
}

std::vector<AxisTile> axis_tiles(const ConvAxis& axis, int64_t count, bool clip, TilePurpose purpose) {
  std::vector<AxisTile> tiles(static_cast<std::size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    AxisTile& tile = tiles[static_cast<std::size_t>(i)];
    if (purpose == TilePurpose::kForward) {
      tile.input = {0, 0};
    } else {
      tile.input = {axis.input * i / count, axis.input * (i + 1) / count};
    }
    tile.output = {axis.output * i / count, axis.output * (i + 1) / count};
    if (purpose == TilePurpose::kBackwardWhole) {
      AxisTile whole = {};
      whole.input = {0, axis.input};
      whole.output = {0, axis.output};
      tile.gradient = gradient_range(axis, whole, clip);
    } else {
      tile.gradient = gradient_range(axis, tile, clip);
    }
    set_x_range(axis, tile, clip, purpose == TilePurpose::kBackwardRecompute);
  }
  return tiles;
}

}  // namespace dwsep
