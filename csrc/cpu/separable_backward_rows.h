// The pointwise half of a separable backward pass: tiles of output pixels, whose products go into the sums of the
// pointwise weight's gradient and into planes of the depthwise output's.
#pragma once

#include <cstdint>

#include "cpu/separable_backward_plan.h"

namespace dwsep {

class SeparableBackwardRows {
 public:
  explicit SeparableBackwardRows(const SeparableBackwardPlan& plan) : plan_(plan) {}

  // Output rows [row_begin, row_end); `panels` has panel_floats(), `planes` are those of the first row's image and the
  // images behind it. With `first` the sums hold nothing yet.
  void run(int64_t row_begin, int64_t row_end, float* panels, float* planes, float* sums, bool first) const;

  // Zeros in the columns of an image's planes that lie outside the output.
  void clear_margins(float* planes) const;

 private:
  const SeparableBackwardPlan& plan_;

  void run_tile(const Tile& tile, int64_t first_image, float* panels, float* planes, float* sums, bool first) const;
  Prefetch next_pixels(const Tile& tile, int64_t begin, int64_t end, int64_t parts) const;
  void copy_to_plane(const Tile& tile, const float* source, float* plane, int64_t first_image) const;
};

}  // namespace dwsep
