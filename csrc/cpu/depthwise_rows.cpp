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

}  // namespace

RowsPlan::RowsPlan(const KernelTable& kernels, const ConvProblem& of, bool backward)
    : table(kernels),
      problem(of),
      height(conv_axis(of, 1)),
      width(conv_axis(of, 2)),
      lanes(kernels.lanes),
      blocks(ceil_div(of.channels, kernels.lanes)),
      pixel_stride(of.channels) {
  const bool flat = of.input[0] == 1 && of.output[0] == 1 && of.kernel[0] == 1 && of.pad_low[0] == 0;
  if (!flat || of.multiplier != 1 || of.element_type != ElementType::kFloat32) return;
  const int64_t reach = (height.kernel - 1) * height.dilation;
  const int64_t budget = l2_cache_bytes() / 2 / static_cast<int64_t>(sizeof(float));
  const auto fitting = [&](int64_t together) {
    inputs = RowRing(std::min(reach + (together - 1) * height.stride + 1, height.input), input_columns(width), lanes);
    if (backward) {
      const int64_t slots = std::max(reach / height.stride + 1, together);
      gradients = RowRing(std::min(slots, height.output), gradient_columns(width), lanes);
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
  bands = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, height.output / 8));
}

bool RowsPlan::pays(bool backward) const {
  // A direct forward of dilated rows reads each operand once for each tap, which no plane spares it.
  const bool neighbours = height.dilation == 1 && width.dilation == 1;
  if (group == 0 || height.stride != 1 || width.stride != 1 || height.input == 1 || !(neighbours || backward))
    return false;
  const int64_t pixels =
      problem.batch * (height.input * width.input * (backward ? 2 : 1) + height.output * width.output);
  const bool large = pixels * problem.channels * static_cast<int64_t>(sizeof(float)) > kCachedBytes;
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
