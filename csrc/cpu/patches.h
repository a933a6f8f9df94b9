// The operands of a dense convolution's pixels: a pixel's patch is what its taps reach.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/conv_problem.h"
#include "cpu/kernel_table.h"
#include "cpu/plane_tiling.h"
#include "cpu/stage_load.h"

namespace dwsep {

// Where a pixel's operands lie: floats from the first to each run of them, and a run's length.
struct PatchRuns {
  std::vector<int64_t> at;
  int64_t length = 0;

  // Of `rows` by `columns` taps, `row_step` floats and `column_step` pixels of so many channels apart: taps side by
  // side are one run.
  PatchRuns(int64_t rows, int64_t row_step, int64_t columns, int64_t column_step, int64_t channels);

  PatchRow job(const float* source, int64_t step, int64_t pixels, float* panel, int64_t block_stride) const {
    return {source, at.data(), static_cast<int64_t>(at.size()), length, step, pixels, panel, block_stride};
  }
};

// The columns `columns` of a row of `width` pixels, zeros beyond it: f(the first column that exists, how many do, where
// they go) writes them.
template <class F>
void fill_padded_row(Range columns, int64_t width, int64_t channels, float* row, const F& f) {
  const int64_t begin = std::clamp<int64_t>(0, columns.begin, columns.end);
  const int64_t end = std::clamp<int64_t>(width, begin, columns.end);
  float* target = row + (begin - columns.begin) * channels;
  std::fill(row, target, 0.0f);
  f(begin, end - begin, target);
  std::fill(target + (end - begin) * channels, row + columns.size() * channels, 0.0f);
}

// Of images (N, H, W, C) of floats. A patch has its elements in the order (row of the kernel, its column, channel).
class Patches {
 public:
  // `problem` and what the load points at must outlive this; `problem.inner_channels` is the number of elements of a
  // patch.
  Patches(const ConvProblem& problem, const float* x, const StageLoad& load = {});

  const PatchRuns& runs() const { return runs_; }
  int64_t step() const { return problem_.stride[2] * problem_.channels; }  // floats from a pixel to the next
  // Memory for the rows of the input under so many output rows, padded with zeros, one behind the other.
  int64_t rows_floats(int64_t lanes, int64_t count = 1) const { return rows_under(count) * row_floats_ + lanes; }
  // Those under `count` output rows from `row` on, through the load's norm and activation; rows which no tap reaches
  // stay as they are.
  void fill_rows(const KernelTable& table, int64_t image, int64_t row, int64_t count, float* rows) const;
  // The patches of output pixels [first, first + count) of rows that were filled, as a panel [inner
  // block][pixel][lane].
  void gather(const KernelTable& table, const float* rows, int64_t first, int64_t count, float* panel) const;
  // The memory that filling those rows reads.
  MemoryRange under(int64_t image, int64_t row, int64_t count) const;

 private:
  const ConvProblem& problem_;
  const float* x_;
  StageLoad load_;
  Range columns_;  // of the input, padding among them
  int64_t row_floats_;
  PatchRuns runs_;

  int64_t rows_under(int64_t count) const {
    return (count - 1) * problem_.stride[1] + (problem_.kernel[1] - 1) * problem_.dilation[1] + 1;
  }
  bool is_reached(int64_t row, int64_t count) const;
};

}  // namespace dwsep
