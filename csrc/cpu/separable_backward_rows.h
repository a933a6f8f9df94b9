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

// Where the depthwise output's gradient goes: planes from `first` on of the images from `first_image` on.
struct PlaneTarget {
  float* planes;
  int64_t first;
  int64_t image_stride;  // floats
  int64_t first_image;
};

class SeparableBackwardRows {
 public:
  explicit SeparableBackwardRows(const SeparableBackwardPlan& plan) : plan_(plan) {}

  // Output rows [row_begin, row_end); `panels` has tile_floats(), `planes` are those of the first row's image and the
  // images behind it. With `first` the sums hold nothing yet.
  void run(int64_t row_begin, int64_t row_end, float* panels, float* planes, float* sums, bool first) const;

  // What lies in the panels of a tile's pixels, blocks block_stride floats apart: gather() writes the output's gradient
  // and the depthwise output before its activation; multiply() the product with one column block of the weight, which
  // is weight_block of job.weights, through the activation into planes; activate() what add_products() wants of them.
  void gather(const Tile& tile, float* gradient, float* depthwise, int64_t block_stride) const;
  PanelProduct product_of(const RowPanels& panels, const float* weights, float* product) const;
  void multiply(const RowPanels& panels, const Tile& tile, const PanelProduct& job, int64_t weight_block, int64_t block,
                const PlaneTarget& target) const;
  void activate(const RowPanels& panels, int64_t begin, int64_t end) const;

  // Vectors [begin, end) of the pointwise weight's sums, those of `begin` first; output blocks [begin, end) of its
  // bias's, of all of which there are sums.
  void add_products(const RowPanels& panels, int64_t begin, int64_t end, float* sums, bool first,
                    const Prefetch& prefetch) const;
  void add_bias(const RowPanels& panels, int64_t begin, int64_t end, float* sums) const;

  // Zeros in the columns of so many planes that lie outside the output.
  void clear_margins(float* planes, int64_t blocks) const;

 private:
  const SeparableBackwardPlan& plan_;

  bool activated() const { return plan_.activation != Activation::kNone; }
  RowPanels fill_tile(const Tile& tile, int64_t first_image, float* panels, float* product, float* planes) const;
  // Of what the next tile reads every column block of the product below asks for a share, and where there is a
  // pointwise gradient, which takes about the same time, that for as many.
  int64_t shares_below() const { return plan_.wants_below() ? plan_.column_blocks : 0; }
  int64_t shares() const {
    return plan_.tensors.pointwise_gradient == nullptr ? shares_below() : std::max<int64_t>(1, 2 * shares_below());
  }
  Prefetch next_pixels(const Tile& tile, int64_t begin, int64_t end, int64_t parts) const;
  void copy_to_plane(const Tile& tile, const float* source, int64_t plane, const PlaneTarget& target) const;
};

}  // namespace dwsep
