#include "cpu/depthwise_rows.h"

#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/isa.h"

namespace dwsep {

void RowRing::place(float* memory, int64_t group, int64_t width, int64_t rows) {
  memory_ = memory;
  offsets_.resize(static_cast<std::size_t>(rows));
  for (int64_t row = 0; row < rows; ++row) offsets_[static_cast<std::size_t>(row)] = row % slots_ * row_floats();
  for (float* slot = memory; slot < memory + group * block_floats(); slot += row_floats()) {
    std::fill_n(slot, -columns_.begin * lanes_, 0.0f);
    std::fill(slot + (width - columns_.begin) * lanes_, slot + row_floats(), 0.0f);
  }
}

RowsPlan::RowsPlan(const KernelTable& kernels, const ConvProblem& of, bool backward)
    : BandPlan(kernels, of, backward), pixel_stride(of.channels) {
  if (!has_two_axes(of) || of.multiplier != 1 || (backward && of.element_type != ElementType::kFloat32)) return;
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
  // Few rows in all: threads share channels.
  constexpr int64_t kLeastUnits = 8;
  if (!backward) group = std::min(group, std::max<int64_t>(1, blocks * items() / kLeastUnits));
  const int64_t pixels = of.batch * of.output[1] * of.output[2];
  if (!backward || pixels * of.channels * static_cast<int64_t>(sizeof(float)) > kLargeBytes) return;
  limit_parts(pixels);
}

bool RowsPlan::pays(bool backward) const {
  if (group == 0 || height.input == 1) return false;
  if (problem.element_type == ElementType::kBFloat16) return half_pays();
  if (!backward && has_short_vectors()) return !short_vectors_leave() && height.stride == 1 && width.stride == 1;
  if (!backward && is_beside_direct()) return pays_beside_direct();
  // Short rows are few sums at a time for the direct kernel, and a tile of planes has a whole image of them.
  const bool neighbours = height.dilation == 1 && width.dilation == 1;
  const bool short_rows = width.input <= 14 && (taps() <= 9 ? width.stride == 1 : width.output <= 8);
  constexpr int64_t kManyImages = 8;
  if (!backward && neighbours && short_rows && problem.batch >= kManyImages) return true;
  // A strided forward reads most of what it reads once anyhow.
  if (!backward && (height.stride != 1 || width.stride != 1)) return false;
  const int64_t pixels =
      problem.batch * (height.input * width.input * (backward ? 2 : 1) + height.output * width.output);
  return pixels * problem.channels * static_cast<int64_t>(sizeof(float)) > kLargeBytes;
}

bool RowsPlan::leaves_to_direct() const {
  if (has_short_vectors()) return short_vectors_leave();
  return is_beside_direct() && !pays_beside_direct();
}

// On vectors of half a cache line: a block of channels, which planes and rows are made of, has only one half
// of each line it touches, so that both halves are moved one by one.
bool RowsPlan::has_short_vectors() const {
  return lanes == 8 && has_two_axes(problem) && problem.element_type == ElementType::kFloat32;
}

// As measured on a Zen 3: what many taps read again and again is nearer in rows, and in short ones sooner.
bool RowsPlan::short_vectors_leave() const {
  constexpr int64_t kShort = 8;
  const int64_t taps = width.kernel;
  return taps < 5 || (taps == 5 && width.output > kShort);
}

// Of a forward: whether rows and the direct kernel are the ways to choose from, and planes the slowest, as measured on
// a Xeon with 2 MiB of second cache a core.
bool RowsPlan::is_beside_direct() const {
  if (group == 0 || height.input == 1 || problem.element_type != ElementType::kFloat32 || lanes < 16) return false;
  return height.stride == 1 && width.stride == 1 && has_large_second_cache();
}

// There: the direct kernel reads each operand from that cache as often as there are kernel rows, which short rows of
// many taps cannot hide; it has loops of its own for 3, 5 and 7 taps.
bool RowsPlan::pays_beside_direct() const {
  constexpr int64_t kFewTaps = 9, kFarBytes = int64_t{40} << 20, kShort = 14, kLong = 64;
  const int64_t taps = width.kernel;
  if (taps <= 3 && slice_taps() <= kFewTaps) {
    const int64_t pixels = problem.batch * (height.input * width.input + height.output * width.output);
    return pixels * problem.channels * static_cast<int64_t>(sizeof(float)) > kFarBytes;
  }
  if (taps == 5) return width.dilation == 1 && width.input <= kShort;
  return taps != 7 || (width.dilation == 1 && width.input < kLong);
}

// Of a forward. The direct kernel has loops of its own for kernel rows of 3 and of 5 taps, also of dilated ones where
// rows are long enough; planes of pairs take half the multiplications, and pay for rows of 5, too.
bool RowsPlan::half_pays() const {
  const int64_t taps = width.kernel, dilation = width.dilation;
  if (!pairs && (width.stride != 1 || dilation != 1)) return false;
  if (taps > 5 || (taps == 4 && width.stride == 1)) return dilation == 1 || width.output > 4 * dilation;
  constexpr int64_t kShort = 16;
  return pairs && taps == 5 && width.stride == 1 && (dilation == 1 || width.output <= kShort);
}

void RowsGroup::fetch(const RowRing& ring, const void* tensor, const StageLoad& load, int64_t image, int64_t rows,
                      int64_t columns, int64_t row) const {
  const int64_t place = at(image, rows, columns, row);
  if (plan_.problem.element_type == ElementType::kBFloat16) {
    const void* source = advanced(tensor, place * element_bytes(ElementType::kBFloat16));
    return copy_row(source, plan_.pixel_stride, columns, ring.row(row, 0), ring.block_floats());
  }
  const StageRow row_job = {static_cast<const float*>(tensor),
                            nullptr,
                            nullptr,
                            nullptr,
                            Activation::kNone,
                            plan_.pixel_stride,
                            columns,
                            channels(),
                            ring.row(row, 0),
                            ring.block_floats()};
  load_stage_row(plan_.table, load, place, channel(), row_job);
}

}  // namespace dwsep
