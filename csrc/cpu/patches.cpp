#include "cpu/patches.h"

#include <algorithm>

#include "cpu/scratch.h"

namespace dwsep {

Patches::Patches(const ConvProblem& problem, const float* x)
    : problem_(problem),
      x_(x),
      left_(problem.pad_low[2]),
      // What no tap reaches may be missing at the right, what taps reach beyond the input is there.
      columns_((problem.output[2] - 1) * problem.stride[2] + (problem.kernel[2] - 1) * problem.dilation[2] + 1),
      row_floats_(columns_ * problem.channels) {
  const bool together = problem.dilation[2] == 1;
  run_length_ = together ? problem.kernel[2] * problem.channels : problem.channels;
  for (int64_t row = 0; row < problem.kernel[1]; ++row) {
    for (int64_t tap = 0; tap < (together ? 1 : problem.kernel[2]); ++tap) {
      runs_.push_back(row * row_floats_ + tap * problem.dilation[2] * problem.channels);
    }
  }
}

void Patches::fill_rows(int64_t image, int64_t row, float* rows) const {
  const ConvProblem& p = problem_;
  const int64_t first = std::max<int64_t>(0, -left_), begin = std::clamp<int64_t>(left_, 0, columns_);
  const int64_t count = std::clamp<int64_t>(p.input[2] - first, 0, columns_ - begin);
  for (int64_t tap = 0; tap < p.kernel[1]; ++tap, rows += row_floats_) {
    const int64_t y = row * p.stride[1] - p.pad_low[1] + tap * p.dilation[1];
    if (y < 0 || y >= p.input[1]) {
      std::fill_n(rows, row_floats_, 0.0f);
      continue;
    }
    const float* source = x_ + ((image * p.input[1] + y) * p.input[2] + first) * p.channels;
    std::fill_n(rows, begin * p.channels, 0.0f);
    std::copy_n(source, count * p.channels, rows + begin * p.channels);
    std::fill_n(rows + (begin + count) * p.channels, (columns_ - begin - count) * p.channels, 0.0f);
  }
}

void Patches::load(const KernelTable& table, int64_t first, int64_t count, float* panel) const {
  const int64_t lanes = table.lanes, width = problem_.output[2], height = problem_.output[1];
  float* rows = scratch(Scratch::kRows, static_cast<std::size_t>(rows_floats(lanes)));
  for (int64_t done = 0; done < count;) {
    const int64_t pixel = first + done, column = pixel % width, row = pixel / width;
    const int64_t run = std::min(width - column, count - done);
    fill_rows(row / height, row % height, rows);
    table.patch_row({rows + column * step(), runs_.data(), static_cast<int64_t>(runs_.size()), run_length_, step(), run,
                     panel + done * lanes, count * lanes});
    done += run;
  }
}

}  // namespace dwsep
