// How an image is cut so that the planes of a tile fit into the cache, and what a tile reads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/conv_problem.h"

namespace dwsep {

int64_t ceil_div(int64_t a, int64_t b);   // rounded up, b > 0
int64_t floor_div(int64_t a, int64_t b);  // rounded down, b > 0

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// f(pixels before them, row, first column, pixels) for the share of every row of `width` pixels in the `count` pixels
// from `first` on.
template <class F>
void for_rows_of(int64_t first, int64_t count, int64_t width, const F& f) {
  for (int64_t done = 0; done < count;) {
    const int64_t row = (first + done) / width, column = (first + done) % width;
    const int64_t run = std::min(width - column, count - done);
    f(done, row, column, run);
    done += run;
  }
}

// One axis of a convolution.
struct ConvAxis {
  int64_t input, output, kernel, stride, dilation, pad_low;

  // Input position under a tap, possibly outside the input.
  int64_t position(int64_t out, int64_t tap) const { return out * stride - pad_low + tap * dilation; }
  // Input positions under the taps of outputs [begin, end), inside the input.
  Range under(int64_t begin, int64_t end) const;
  // Outputs before a position's own whose taps reach it.
  int64_t reach() const { return (kernel - 1) * dilation / stride; }
  // Taps of an output position that are inside the input.
  Range taps_inside(int64_t out) const;
  // Taps between which an input position has an output position, where the stride divides the distance.
  Range taps_reaching(int64_t in) const;
};

ConvAxis conv_axis(const ConvProblem& problem, int axis);

// What a tile covers along one axis.
struct AxisTile {
  Range input;     // positions whose gradient the tile computes; none in forward
  Range output;    // positions which it computes, or whose share of the weight's gradient
  Range gradient;  // output positions in its gradient planes
  Range x;         // input positions in its input planes
  Range taps;      // those that meet the input anywhere in the input planes
};

// What tiles are for decides what is in their planes: backward with recomputation takes the input under all of the
// gradient plane, backward without it only under `output`. kBackwardWhole is a backward whose gradient planes exist
// already, of whole images.
enum class TilePurpose { kForward, kBackward, kBackwardRecompute, kBackwardWhole };

// Cuts one axis into `count` tiles. With `clip`, planes hold only what exists; without, they go on beyond the ends as
// far as taps reach, for zeros.
std::vector<AxisTile> axis_tiles(const ConvAxis& axis, int64_t count, bool clip, TilePurpose purpose);

}  // namespace dwsep
