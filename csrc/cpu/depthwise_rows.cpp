#include "cpu/depthwise_rows.h"

#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/isa.h"
#include "cpu/plane_plan.h"

namespace dwsep {
Range input_columns(const ConvAxis& axis) {
  return {std::min<int64_t>(0, axis.position(0, 0)),
          std::max(axis.input, axis.position(axis.output - 1, axis.kernel - 1) + 1)};
}

Range gradient_columns(const ConvAxis& axis) {
  const int64_t first = floor_div(axis.pad_low - (axis.kernel - 1) * axis.dilation, axis.stride);
  const int64_t last = floor_div(axis.input - 1 + axis.pad_low, axis.stride);
  return {std::min<int64_t>(0, first), std::max(axis.output, last + 1)};
}

void RowRing::place(float* memory, int64_t group, int64_t width, int64_t rows) {
  memory_ = memory;
  offsets_.resize(static_cast<std::size_t>(rows));
  for (int64_t row = 0; row < rows; ++row) offsets_[static_cast<std::size_t>(row)] = offset(row);
  for (float* slot = memory; slot < memory + group * block_floats(); slot += row_floats()) {
    std::fill_n(slot, -columns_.begin * lanes_, 0.0f);
    std::fill(slot + (width - columns_.begin) * lanes_, slot + row_floats(), 0.0f);
  }
}

std::vector<AxisResidue> axis_residues(const ConvAxis& axis) {
  std::vector<AxisResidue> residues;
  for (int64_t first = 0; first < std::min(axis.stride, axis.input); ++first) {
    AxisResidue residue = {first, 0, 0, 0, 0, 1};
    for (int64_t tap = axis.kernel - 1; tap >= 0; --tap) {
      const int64_t before = first + axis.pad_low - tap * axis.dilation;
      if (floor_div(before, axis.stride) * axis.stride != before) continue;
      if (residue.taps == 0) {
        residue.last_tap = tap;
        residue.from = before / axis.stride;
      } else if (residue.taps == 1) {
        residue.tap_step = residue.last_tap - tap;
        residue.dilation = before / axis.stride - residue.from;
      }
      ++residue.taps;
    }
    residues.push_back(residue);
  }
  return residues;
}

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
  if (backward) {
    height_residues = axis_residues(height);
    width_residues = axis_residues(width);
  }
  const int64_t reach = (height.kernel - 1) * height.dilation;
  const int64_t budget = l2_cache_bytes() / 2 / static_cast<int64_t>(sizeof(float));
  const auto rings = [&](int64_t rows) {
    inputs = RowRing(std::min(reach + (rows - 1) * height.stride + 1, height.input), input_columns(width), lanes);
    if (backward)
      gradients = RowRing(std::min(reach / height.stride + rows, height.output), gradient_columns(width), lanes);
    return inputs.block_floats() + gradients.block_floats();
  };
  const int64_t least = rings(1);
  group = std::min(blocks, budget / least);
  if (group == 0) return;
  // As many rows as leave a block in the first cache, and take none out of the second: what is prepared for rows, and
  // the sums of the weight's gradient, are loaded and stored once for all of them.
  constexpr int64_t kMostTogether = 8;
  const int64_t near = l1_cache_bytes() * 3 / 4 / static_cast<int64_t>(sizeof(float));
  for (together = std::min(kMostTogether, height.output); together > 1; --together) {
    const int64_t size = rings(together);
    if (size <= std::max(near, least) && size * group <= budget) break;
  }
  rings(together);
  // Groups of the same size, as far as that goes.
  group = ceil_div(blocks, ceil_div(blocks, group));
  const int64_t wanted = ceil_div(16, groups() * std::max<int64_t>(1, of.batch));
  bands = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, height.output / 8));
}

bool RowsPlan::pays(bool backward) const {
  if (group == 0 || height.input == 1) return false;
  // Short rows are few sums at a time for the direct kernel, and a tile of planes has a whole image of them.
  const bool neighbours = height.dilation == 1 && width.dilation == 1;
  const bool short_rows = width.input <= 14 && (taps() <= 9 ? width.stride == 1 : width.output <= 8);
  constexpr int64_t kManyImages = 8;
  if (!backward && neighbours && short_rows && problem.batch >= kManyImages) return true;
  // A strided forward reads most of what it reads once anyhow.
  if (!backward && (height.stride != 1 || width.stride != 1)) return false;
  // What a cache close by may still hold is faster taken from where it lies.
  constexpr int64_t kLargeBytes = int64_t{8} << 20;
  const int64_t pixels =
      problem.batch * (height.input * width.input * (backward ? 2 : 1) + height.output * width.output);
  return pixels * problem.channels * static_cast<int64_t>(sizeof(float)) > kLargeBytes;
}

void RowsPlan::pack(const WeightSources& sources, float* memory) {
  const int64_t floats = blocks * taps() * lanes;
  weights = memory;
  bias = memory + floats;
  pack_for_planes(problem, lanes, sources, memory, memory + floats);
  if (!is_backward()) return;
  residue_weights = memory + floats + blocks * lanes;
  pack_residues(weights, blocks, taps(), lanes, height_residues, width_residues, width.kernel,
                memory + floats + blocks * lanes);
}

void pack_residues(const float* weights, int64_t count, int64_t taps, int64_t lanes,
                   const std::vector<AxisResidue>& height, const std::vector<AxisResidue>& width, int64_t kernel_width,
                   float* target) {
  for (int64_t kernel = 0; kernel < count; ++kernel, weights += taps * lanes) {
    float* to = target + kernel * taps * lanes;
    for (const AxisResidue& h : height) {
      for (const AxisResidue& w : width) {
        for (int64_t i = 0; i < h.taps * w.taps; ++i, to += lanes) {
          const int64_t row = h.last_tap - i / w.taps * h.tap_step, column = w.last_tap - i % w.taps * w.tap_step;
          std::copy_n(weights + (row * kernel_width + column) * lanes, lanes, to);
        }
      }
    }
  }
}

void RowsGroup::fetch(const RowRing& ring, const float* tensor, const StageLoad& load, int64_t image, int64_t rows,
                      int64_t columns, int64_t row) const {
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
  load_stage_row(plan_.table, load, at(image, rows, columns, row), channel(), row_job);
}

}  // namespace dwsep
