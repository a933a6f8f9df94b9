// The pointwise half of a separable backward pass: tiles of output pixels, whose products go into the sums of the
// pointwise weight's gradient and into planes of the depthwise output's.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/separable_backward_plan.h"

namespace dwsep {

// What one tile's pixels are multiplied from, [block][pixel][lane] each: the output's gradient and the depthwise
// output.
struct RowPanels {
  int64_t pixels;
  float* gradient;
  float* depthwise;
};

class SeparableBackwardRows {
 public:
  explicit SeparableBackwardRows(const SeparableBackwardPlan& plan) : plan_(plan) {}

  // Output rows [row_begin, row_end); `panels` has tile_floats(), `planes` are those of the first row's image and the
  // images behind it. With `first` the sums hold nothing yet.
  void run(int64_t row_begin, int64_t row_end, float* panels, float* planes, float* sums, bool first) const;

  // The same rows as one tile without the sums, for which `panels` are left filled; `product` is overwritten.
  RowPanels fill(int64_t row_begin, int64_t row_end, float* panels, float* product, float* planes) const;

  // Vectors [begin, end) of the pointwise weight's sums, and its bias's.
  void add_products(const RowPanels& panels, int64_t begin, int64_t end, float* sums, bool first,
                    const Prefetch& prefetch) const;
  void add_bias(const RowPanels& panels, float* sums) const;

  // Zeros in the columns of an image's planes that lie outside the output.
  void clear_margins(float* planes) const;

 private:
  const SeparableBackwardPlan& plan_;

  RowPanels fill_tile(const Tile& tile, int64_t first_image, float* panels, float* product, float* planes) const;
  // Of what the next tile reads every column block of the product below asks for a share, and where there is a
  // pointwise gradient, which takes about the same time, that for as many.
  int64_t shares_below() const { return plan_.wants_below() ? plan_.column_blocks : 0; }
  int64_t shares() const {
    return plan_.tensors.pointwise_gradient == nullptr ? shares_below() : std::max<int64_t>(1, 2 * shares_below());
  }
  Prefetch next_pixels(const Tile& tile, int64_t begin, int64_t end, int64_t parts) const;
  void copy_to_plane(const Tile& tile, const float* source, float* plane, int64_t first_image) const;
};

}  // namespace dwsep
