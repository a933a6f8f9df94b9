// The operands of a dense convolution's pixels: a pixel's patch is what its taps reach.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/conv_problem.h"
#include "cpu/kernel_table.h"
#include "cpu/stage_load.h"

namespace dwsep {

// Of images (N, H, W, C) of floats. A patch has its elements in the order (row of the kernel, its column, channel),
// which lie in memory in runs: taps side by side are one where nothing lies between them.
class Patches {
 public:
  // `problem` and what the load points at must outlive this; `problem.inner_channels` is the number of elements of a
  // patch.
  Patches(const ConvProblem& problem, const float* x, const StageLoad& load = {});

  const std::vector<int64_t>& runs() const { return runs_; }  // floats from a pixel's first operand to each run
  int64_t run_length() const { return run_length_; }
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
  int64_t left_, columns_, row_floats_;
  int64_t run_length_;
  std::vector<int64_t> runs_;

  int64_t rows_under(int64_t count) const {
    return (count - 1) * problem_.stride[1] + (problem_.kernel[1] - 1) * problem_.dilation[1] + 1;
  }
  bool is_reached(int64_t row, int64_t count) const;
};

}  // namespace dwsep
