// Cuts an input row of a depthwise convolution into jobs of direct_back_row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/depthwise_bands.h"

namespace dwsep {

// Whether there are loops for a kernel of so many taps, and for those that every column of an input meets.
inline bool has_direct_loops(int64_t taps, const std::vector<AxisResidue>& residues) {
  constexpr int64_t kMostTaps = 49;
  return taps <= kMostTaps && std::all_of(residues.begin(), residues.end(), [](const AxisResidue& residue) {
           return residue.taps > 0 && (residue.taps <= 5 || residue.taps == 7);
         });
}

class DirectRows {
 public:
  // The kernel rows that bring output rows to `row`; `gradient(output row)` is column 0 of its first channel block.
  template <class F>
  void set_lines(const BandPlan& plan, int64_t row, const F& gradient) {
    const ConvAxis& height = plan.height;
    const Range taps = height.taps_reaching(row);
    lines_.clear();
    for (int64_t tap = taps.begin; tap < taps.end; ++tap) {
      const int64_t from = row + height.pad_low - tap * height.dilation;
      if (from % height.stride != 0) continue;
      lines_.push_back({gradient(from / height.stride), tap * plan.width.kernel * plan.lanes});
    }
  }

  // f(job, first column, columns from one to the next, residue, which of the residue's) for columns whose taps meet the
  // same gradients, of channel blocks from `block` on, with `sums` for them; `pixel` floats from a pixel of x to the
  // next. Of the job f adds where x and its gradient are; what is the same for all is `job`'s.
  template <class F>
  void for_columns(const BandPlan& plan, const std::vector<AxisResidue>& residues, int64_t block, float* sums,
                   int64_t pixel, DirectBackRow job, const F& f) const {
    const ConvAxis& width = plan.width;
    job.lines = lines_.data();
    job.line_count = static_cast<int64_t>(lines_.size());
    job.block_floats = plan.taps() * plan.lanes;
    job.sums_stride = plan.sums_of_block();
    for (const AxisResidue& residue : residues) {
      const int64_t tap = residue.last_tap - (residue.taps - 1) * residue.tap_step;
      const int64_t step = width.stride * residue.dilation;
      job.taps = residue.taps;
      job.tap_floats = residue.tap_step * plan.lanes;
      job.weights = plan.weights + (block * plan.taps() + tap) * plan.lanes;
      job.sums = sums + tap * plan.lanes;
      job.column_step = step * pixel;
      job.gradient_step = residue.dilation;
      for (int64_t i = 0; i < residue.dilation; ++i) {
        const int64_t column = residue.first + i * width.stride;
        if (column >= width.input) break;
        job.columns = ceil_div(width.input - column, step);
        job.first = residue.from + i;
        f(job, column, step, residue, i);
      }
    }
  }

 private:
  std::vector<DirectBackLine> lines_;
};

}  // namespace dwsep
