#include "cpu/patches.h"

#include <algorithm>

namespace dwsep {

Patches::Patches(const ConvProblem& problem, const float* x, const StageLoad& load)
    : problem_(problem),
      x_(x),
      load_(load),
      left_(problem.pad_low[2]),
      // What no tap reaches may be missing at the right, what taps reach beyond the input is there.
      columns_((problem.output[2] - 1) * problem.stride[2] + (problem.kernel[2] - 1) * problem.dilation[2] + 1),
      row_floats_(columns_ * problem.channels) {
  const bool together = problem.dilation[2] == 1;
  run_length_ = together ? problem.kernel[2] * problem.channels : problem.channels;
  for (int64_t row = 0; row < problem.kernel[1]; ++row) {
    for (int64_t tap = 0; tap < (together ? 1 : problem.kernel[2]); ++tap) {
      runs_.push_back(row * problem.dilation[1] * row_floats_ + tap * problem.dilation[2] * problem.channels);
    }
  }
}

// Whether a tap of `count` output rows reaches the row that is `row` behind the first tap of the first of them.
bool Patches::is_reached(int64_t row, int64_t count) const {
  for (int64_t tap = 0; tap < problem_.kernel[1]; ++tap) {
    const int64_t before = row - tap * problem_.dilation[1];
    if (before >= 0 && before % problem_.stride[1] == 0 && before / problem_.stride[1] < count) return true;
  }
  return false;
}

void Patches::fill_rows(const KernelTable& table, int64_t image, int64_t row, int64_t count, float* rows) const {
  const ConvProblem& p = problem_;
  const int64_t first = std::max<int64_t>(0, -left_), begin = std::clamp<int64_t>(left_, 0, columns_);
  const int64_t inside = std::clamp<int64_t>(p.input[2] - first, 0, columns_ - begin);
  const int64_t top = row * p.stride[1] - p.pad_low[1], height = rows_under(count);
  for (int64_t i = 0; i < height; ++i, rows += row_floats_) {
    if (!is_reached(i, count)) continue;
    const int64_t y = top + i;
    if (y < 0 || y >= p.input[1]) {
      std::fill_n(rows, row_floats_, 0.0f);
      continue;
    }
    const float* source = x_ + ((image * p.input[1] + y) * p.input[2] + first) * p.channels;
    float* target = rows + begin * p.channels;
    std::fill_n(rows, begin * p.channels, 0.0f);
    if (load_.scale == nullptr && load_.activation == Activation::kNone) {
      std::copy_n(source, inside * p.channels, target);
    } else {
      table.stage_output({source, load_.scale, load_.shift, load_.activation, nullptr, inside, p.channels, target});
    }
    std::fill_n(target + inside * p.channels, (columns_ - begin - inside) * p.channels, 0.0f);
  }
}

void Patches::gather(const KernelTable& table, const float* rows, int64_t first, int64_t count, float* panel) const {
  const int64_t lanes = table.lanes, width = problem_.output[2];
  for (int64_t done = 0; done < count;) {
    const int64_t column = (first + done) % width, row = (first + done) / width;
    const int64_t run = std::min(width - column, count - done);
    table.patch_row({rows + row * problem_.stride[1] * row_floats_ + column * step(), runs_.data(),
                     static_cast<int64_t>(runs_.size()), run_length_, step(), run, panel + done * lanes,
                     count * lanes});
    done += run;
  }
}

MemoryRange Patches::under(int64_t image, int64_t row, int64_t count) const {
  const ConvProblem& p = problem_;
  const int64_t top = row * p.stride[1] - p.pad_low[1];
  const int64_t begin = std::clamp<int64_t>(top, 0, p.input[1]);
  const int64_t end = std::clamp<int64_t>(top + rows_under(count), begin, p.input[1]);
  const int64_t row_length = p.input[2] * p.channels;
  return {x_ + (image * p.input[1] + begin) * row_length,
          (end - begin) * row_length * static_cast<int64_t>(sizeof(float))};
}

}  // namespace dwsep
