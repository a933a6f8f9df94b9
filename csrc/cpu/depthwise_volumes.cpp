#include "cpu/depthwise_volumes.h"

#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/elements.h"

namespace dwsep {

void SliceRing::place(float* memory, int64_t group, int64_t width) {
  memory_ = memory;
  for (float* row = memory; row < memory + group * block_floats(); row += row_floats()) {
    std::fill_n(row, -columns_.begin * lanes_, 0.0f);
    std::fill(row + (width - columns_.begin) * lanes_, row + row_floats(), 0.0f);
  }
}

VolumePlan::VolumePlan(const KernelTable& kernels, const ConvProblem& of, bool backward)
    : BandPlan(kernels, of, backward) {
  const bool empty = of.batch == 0 || depth.output < 1 || height.output < 1 || width.output < 1;
  const bool flat = of.input[0] == 1 && of.output[0] == 1 && of.kernel[0] == 1;
  if (flat || of.multiplier != 1 || (backward && of.element_type != ElementType::kFloat32) || empty) return;
  const auto size = static_cast<int64_t>(sizeof(float));
  const int64_t budget = l2_cache_bytes() / 2 / size;
  const auto rings = [&](int64_t rows) {
    const int64_t under = (rows - 1) * height.stride + (height.kernel - 1) * height.dilation + 1;
    inputs = SliceRing(std::min((depth.kernel - 1) * depth.dilation + 1, depth.input), std::min(under, height.input),
                       input_columns(width), lanes);
    if (backward) {
      gradients = SliceRing(std::min(depth.reach() + 1, depth.output), std::min(height.reach() + rows, height.output),
                            gradient_columns(width), lanes);
    }
    return inputs.block_floats() + gradients.block_floats();
  };
  // Neighbouring channels are read together, and rows under two bands twice.
  constexpr int64_t kMostBlocks = 4, kLeastRows = 7;
  for (group = std::min(blocks, kMostBlocks); group > 0; --group) {
    if (rings(std::min(height.output, kLeastRows)) * group <= budget) break;
  }
  if (group == 0) return;
  group = ceil_div(blocks, ceil_div(blocks, group));
  int64_t rows = height.output;
  while (rows > 1 && rings(rows) * group > budget) --rows;
  const int64_t wanted = ceil_div(16, groups() * of.batch);
  bands = std::max(ceil_div(height.output, rows), std::min(wanted, std::max<int64_t>(1, height.output / 8)));
  rings(ceil_div(height.output, bands));
}

bool VolumePlan::pays(bool backward) const {
  if (group == 0 || backward) return group > 0;
  // The direct forward reads what few taps share from a cache, and of strided slices not all.
  constexpr int64_t kManyTaps = 9;
  if (pairs) return true;
  const int64_t pixels =
      problem.batch * (depth.input * height.input * width.input + depth.output * height.output * width.output);
  const bool large = pixels * problem.channels * static_cast<int64_t>(sizeof(float)) > kLargeBytes;
  return depth.stride == 1 && (taps() > kManyTaps || large);
}

void VolumeGroup::fetch(const SliceRing& ring, const void* from, int64_t rows, int64_t width, int64_t slice) const {
  const int64_t pixel = plan_.problem.channels;
  float* plane = ring.block(0) + ring.offset(slice);
  if (plan_.problem.element_type == ElementType::kBFloat16) {
    const int64_t row_bytes = width * pixel * element_bytes(ElementType::kBFloat16);
    for (int64_t row = 0; row < rows; ++row) {
      const void* source = advanced(from, row * row_bytes);
      copy_row(source, pixel, width, plane + row * ring.row_floats(), ring.block_floats());
    }
    return;
  }
  StageRow job = {static_cast<const float*>(from),
                  nullptr,
                  nullptr,
                  nullptr,
                  Activation::kNone,
                  pixel,
                  width,
                  channels(),
                  plane,
                  ring.block_floats()};
  for (int64_t row = 0; row < rows; ++row) {
    plan_.table.stage_row(job);
    job.x += width * pixel;
    job.plane += ring.row_floats();
  }
}

void VolumeGroup::expect(const void* from, int64_t rows, int64_t width) {
  const int64_t size = element_bytes(plan_.problem.element_type);
  ahead_.add(from, rows * width, plan_.problem.channels * size, channels() * size);
}

}  // namespace dwsep
