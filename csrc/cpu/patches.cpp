#include "cpu/patches.h"

#include <algorithm>

namespace dwsep {

PatchRuns::PatchRuns(int64_t rows, int64_t row_step, int64_t columns, int64_t column_step, int64_t channels) {
  const bool together = column_step == 1 || columns == 1;
  length = (together ? columns : 1) * channels;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t tap = 0; tap < (together ? 1 : columns); ++tap) {
      at.push_back(row * row_step + tap * column_step * channels);
    }
  }
}

Patches::Patches(const ConvProblem& problem, const float* x, const StageLoad& load)
    : problem_(problem),
      x_(x),
      load_(load),
      // What no tap reaches may be missing at the right, what taps reach beyond the input is there.
      columns_{-problem.pad_low[2], (problem.output[2] - 1) * problem.stride[2] - problem.pad_low[2] +
                                        (problem.kernel[2] - 1) * problem.dilation[2] + 1},
      row_floats_(columns_.size() * problem.channels),
      runs_(problem.kernel[1], problem.dilation[1] * row_floats_, problem.kernel[2], problem.dilation[2],
            problem.channels) {}

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
  const int64_t top = row * p.stride[1] - p.pad_low[1], height = rows_under(count);
  for (int64_t i = 0; i < height; ++i, rows += row_floats_) {
    if (!is_reached(i, count)) continue;
    const int64_t y = top + i;
    if (y < 0 || y >= p.input[1]) {
      std::fill_n(rows, row_floats_, 0.0f);
      continue;
    }
    fill_padded_row(columns_, p.input[2], p.channels, rows, [&](int64_t first, int64_t count_inside, float* target) {
      const float* source = x_ + ((image * p.input[1] + y) * p.input[2] + first) * p.channels;
      if (load_.scale == nullptr && load_.activation == Activation::kNone) {
        std::copy_n(source, count_inside * p.channels, target);
      } else {
        table.stage_output(
            {source, load_.scale, load_.shift, load_.activation, nullptr, count_inside, p.channels, target});
      }
    });
  }
}

void Patches::gather(const KernelTable& table, const float* rows, int64_t first, int64_t count, float* panel) const {
  const int64_t lanes = table.lanes;
  for_rows_of(first, count, problem_.output[2], [&](int64_t done, int64_t row, int64_t column, int64_t run) {
    table.patch_row(runs_.job(rows + row * problem_.stride[1] * row_floats_ + column * step(), step(), run,
                              panel + done * lanes, count * lanes));
  });
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
