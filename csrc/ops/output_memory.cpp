#include "ops/output_memory.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>

#include "cpu/kept_memory.h"

namespace dwsep {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Smaller blocks stay in the C library's heap between calls.
constexpr int64_t kKeptBytes = int64_t{1} << 20;

// Of the axes from the one that changes slowest to the one that changes fastest.
std::vector<int64_t> strides_of(const std::vector<int64_t>& sizes, MemoryFormat format) {
  const std::size_t axes = sizes.size();
  std::vector<int64_t> strides(axes);
  int64_t stride = 1;
  const auto next = [&](std::size_t axis) {
    strides[axis] = stride;
    stride *= std::max<int64_t>(sizes[axis], 1);
  };
  const bool last = format != MemoryFormat::Contiguous;
  if (last) next(1);
  for (std::size_t axis = axes; axis-- > (last ? 2 : 0);) next(axis);
  if (last) next(0);
  return strides;
}

}  // namespace

// A training step makes some hundreds of small tensors: past the dispatcher each takes a third of the time. What fills
// uninitialised memory in tests is behind it.
Tensor empty_tensor(const std::vector<int64_t>& sizes, ScalarType dtype, MemoryFormat format) {
  if (keeping() == Keeping::kSpoil) {
    return torch::stable::empty(sizes, dtype, std::nullopt, std::nullopt, std::nullopt, format);
  }
  const std::vector<int64_t> strides = strides_of(sizes, format);
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), static_cast<int32_t>(dtype),
                                                         aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

Tensor empty_output(const std::vector<int64_t>& sizes, ScalarType dtype, MemoryFormat format) {
  int64_t bytes = dtype == ScalarType::BFloat16 ? 2 : 4;
  for (const int64_t size : sizes) bytes *= size;
  const bool known = dtype == ScalarType::Float || dtype == ScalarType::BFloat16;
  if (!known || bytes < kKeptBytes || keeping() == Keeping::kOff) {
    return empty_tensor(sizes, dtype, format);
  }
  void* memory = take_memory(static_cast<std::size_t>(bytes));
  return torch::stable::from_blob(memory, sizes, strides_of(sizes, format),
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype, &give_memory_back);
}

}  // namespace dwsep
