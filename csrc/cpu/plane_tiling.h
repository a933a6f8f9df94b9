// How an image is cut so that the planes of a tile fit into the cache, and what a tile reads.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/conv_problem.h"

namespace dwsep {

int64_t ceil_div(int64_t a, int64_t b);   // rounded up, b > 0
int64_t floor_div(int64_t a, int64_t b);  // rounded down, b > 0

// One axis of a convolution.
struct ConvAxis {
  int64_t input, output, kernel, stride, dilation, pad_low;

  // Input position under a tap, possibly outside the input.
  int64_t position(int64_t out, int64_t tap) const { return out * stride - pad_low + tap * dilation; }
};

ConvAxis conv_axis(const ConvProblem& problem, int axis);

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// What a tile covers along one axis.
struct AxisTile {
  Range input;         // positions whose gradient the tile computes
  Range output;        // positions whose share of the weight's gradient it computes
  Range gradient;      // output positions in its gradient planes
  Range x;             // input positions in its input planes
  Range taps;          // those that meet the input anywhere in the input planes
};

// Cuts one axis into `count` tiles. With `clip`, planes hold only what exists; without, they go on beyond the ends as far
// as taps reach, for zeros. `recompute` asks for the input under all of the gradient plane, not only under `output`.
std::vector<AxisTile> axis_tiles(const ConvAxis& axis, int64_t count, bool clip, bool recompute);

}  // namespace dwsep
