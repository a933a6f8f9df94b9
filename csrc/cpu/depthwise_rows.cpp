#include "cpu/depthwise_rows.h"

#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/isa.h"
#include "cpu/plane_plan.h"
#include "cpu/streaming.h"

namespace dwsep {
namespace {

// Columns that the taps of any output column reach, beyond the input too.
Range input_columns(const ConvAxis& axis) {
  return {std::min<int64_t>(0, axis.position(0, 0)),
          std::max(axis.input, axis.position(axis.output - 1, axis.kernel - 1) + 1)};
}

// Columns of outputs whose taps reach any input column, beyond the output too.
Range gradient_columns(const ConvAxis& axis) {
  const int64_t first = floor_div(axis.pad_low - (axis.kernel - 1) * axis.dilation, axis.stride);
  const int64_t last = floor_div(axis.input - 1 + axis.pad_low, axis.stride);
  return {std::min<int64_t>(0, first), std::max(axis.output, last + 1)};
}

// What the number of rows that a ring holds was derived for, where rows are counted through planes.
bool steps_plainly(const ConvAxis& axis) {
  return axis.stride == 1 && axis.pad_low >= 0 && axis.pad_low <= (axis.kernel - 1) * axis.dilation;
}

}  // namespace

RowsPlan::RowsPlan(const KernelTable& kernels, const ConvProblem& of, bool backward)
    : table(kernels),
      problem(of),
      depth(conv_axis(of, 0)),
      height(conv_axis(of, 1)),
      width(conv_axis(of, 2)),
      lanes(kernels.lanes),
      blocks(ceil_div(of.channels, kernels.lanes)),
      pixel_stride(of.channels) {
  if (of.multiplier != 1 || of.element_type != ElementType::kFloat32) return;
  if (!flat() && !(steps_plainly(depth) && steps_plainly(height) && height.input == height.output)) return;
  const int64_t budget = l2_cache_bytes() / 2 / static_cast<int64_t>(sizeof(float));
  const auto fitting = [&](int64_t together) {
    inputs = RowRing(std::min(slots(height.input, together), input_rows()), input_columns(width), lanes);
    if (backward) {
      const int64_t reach = (slots(height.output, 1) - 1) / height.stride + 1;
      gradients = RowRing(std::min(std::max(reach, together), output_rows()), gradient_columns(width), lanes);
    }
    return std::min(blocks, budget / (inputs.floats(1) + gradients.floats(1)));
  };
  group = fitting(1);
  if (group == 0) return;
  // The sums of the weight's gradient are loaded and stored once for so many rows, where that takes no block out.
  constexpr int64_t kMostTogether = 4;
  for (together = backward ? kMostTogether : 1; together > 1 && fitting(together) < group;) --together;
  if (together == 1) fitting(1);
  // Groups of the same size, as far as that goes.
  group = ceil_div(blocks, ceil_div(blocks, group));
  const int64_t wanted = ceil_div(16, groups() * std::max<int64_t>(1, of.batch));
  bands = flat() ? std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, height.output / 8)) : 1;
}

int64_t RowsPlan::input_row(int64_t output, int64_t kernel_row) const {
  const int64_t d = depth.position(output / height.output, kernel_row / height.kernel);
  const int64_t h = height.position(output % height.output, kernel_row % height.kernel);
  const bool inside = d >= 0 && d < depth.input && h >= 0 && h < height.input;
  return inside ? d * height.input + h : -1;
}

int64_t RowsPlan::output_row(int64_t input, int64_t kernel_row) const {
  const int64_t d = input / height.input + depth.pad_low - kernel_row / height.kernel * depth.dilation;
  const int64_t h = input % height.input + height.pad_low - kernel_row % height.kernel * height.dilation;
  if (d < 0 || d % depth.stride != 0 || d / depth.stride >= depth.output) return -1;
  if (h < 0 || h % height.stride != 0 || h / height.stride >= height.output) return -1;
  return d / depth.stride * height.output + h / height.stride;
}

Range RowsPlan::inputs_of(int64_t output) const {
  const int64_t d = output / height.output, h = output % height.output;
  const int64_t last_d = std::min(depth.input - 1, depth.position(d, depth.kernel - 1));
  const int64_t last_h = std::min(height.input - 1, height.position(h, height.kernel - 1));
  return {std::max<int64_t>(0, depth.position(d, 0)) * height.input + std::max<int64_t>(0, height.position(h, 0)),
          last_d * height.input + last_h + 1};
}

int64_t RowsPlan::last_output_of(int64_t input) const {
  const int64_t d = floor_div(input / height.input + depth.pad_low, depth.stride);
  const int64_t h = floor_div(input % height.input + height.pad_low, height.stride);
  return std::min(d, depth.output - 1) * height.output + std::min(h, height.output - 1);
}

bool RowsPlan::pays(bool backward) const {
  // A direct forward of dilated rows reads each operand once for each tap, which no plane spares it.
  const bool neighbours = depth.dilation == 1 && height.dilation == 1 && width.dilation == 1;
  if (group == 0 || height.stride != 1 || width.stride != 1 || height.input == 1 || !(neighbours || backward))
    return false;
  const int64_t pixels =
      problem.batch * (input_rows() * width.input * (backward ? 2 : 1) + output_rows() * width.output);
  const bool large = pixels * problem.channels * static_cast<int64_t>(sizeof(float)) > kCachedBytes;
  if (!flat()) return large && taps() <= 27 && problem.batch * groups() >= 4;
  return large && (taps() <= 9 || (taps() <= 25 && group == blocks));
}

void RowsPlan::pack(const WeightSources& sources, float* memory) {
  float* packed_bias = memory + blocks * taps() * lanes;
  pack_for_planes(problem, lanes, sources, memory, packed_bias);
  weights = memory;
  bias = packed_bias;
}

void RowsGroup::fetch(const RowRing& ring, const float* tensor, const StageLoad& load, int64_t image, int64_t rows,
                      int64_t columns, int64_t row) const {
  const int64_t lanes = plan_.lanes, from = at(image, rows, columns, row);
  const Range& range = ring.columns();
  for (int64_t block = 0; block < group_; ++block) {
    float* plane = ring.row(row, block);
    std::fill(plane + range.begin * lanes, plane, 0.0f);
    std::fill(plane + columns * lanes, plane + range.end * lanes, 0.0f);
  }
  const StageRow row_job = {tensor,
                            nullptr,
                            nullptr,
                            nullptr,
                            Activation::kNone,
                            plan_.pixel_stride,
                            columns,
                            channels(),
                            ring.row(row, 0),
                            ring.block_floats()};
  load_stage_row(plan_.table, load, from, channel(), row_job);
}

}  // namespace dwsep
