// The operands of a dense convolution's pixels, gathered from images: a pixel's patch is what its taps reach.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/conv_problem.h"
#include "cpu/kernel_table.h"

namespace dwsep {

// Of images (N, H, W, C) of floats. A patch has its elements in the order (row of the kernel, its column, channel),
// which lie in memory in runs: taps side by side are one where nothing lies between them.
class Patches {
 public:
  // Both must outlive this; `problem.inner_channels` is the number of elements of a patch.
  Patches(const ConvProblem& problem, const float* x);

  const ConvProblem& problem() const { return problem_; }
  const std::vector<int64_t>& runs() const { return runs_; }  // floats from a pixel's first operand to each run
  int64_t run_length() const { return run_length_; }
  int64_t step() const { return problem_.stride[2] * problem_.channels; }  // floats from a pixel to the next
  // Memory for the rows of the input under one output row, padded with zeros, one behind the other.
  int64_t rows_floats(int64_t lanes) const { return problem_.kernel[1] * row_floats_ + lanes; }
  void fill_rows(int64_t image, int64_t row, float* rows) const;
  // The patches of output pixels [first, first + count), of all images' one behind the other, as a panel
  // [inner block][pixel][lane].
  void load(const KernelTable& table, int64_t first, int64_t count, float* panel) const;

 private:
  const ConvProblem& problem_;
  const float* x_;
  int64_t left_, columns_, row_floats_;
  int64_t run_length_;
  std::vector<int64_t> runs_;
};

}  // namespace dwsep
