#include "ops/arguments.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <iterator>

#include "cpu/layout_copy.h"
#include "ops/output_memory.h"

namespace dwsep {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

// In the order of Activation.
constexpr const char* kActivations[] = {"none", "relu", "relu6", "silu", "hardswish", "gelu"};

constexpr int64_t kLargest = (int64_t{1} << 31) - 1;

MemoryFormat last_format(int64_t dims) { return dims == 5 ? MemoryFormat::ChannelsLast3d : MemoryFormat::ChannelsLast; }

}  // namespace

ElementType element_type_of(const Tensor& x) {
  return x.scalar_type() == ScalarType::Float ? ElementType::kFloat32 : ElementType::kBFloat16;
}

// The rule of ops/_layout.py, on the same strides.
bool is_channels_last(const Tensor& x) {
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  const int64_t dims = x.dim();
  if (strides[1] == 0) return false;
  int64_t smallest = 0;
  const auto orders = [&](int64_t axis) {
    if (sizes[axis] == 0 || strides[axis] < smallest) return false;
    if (axis == 0 && smallest == strides[1]) return false;
    smallest = strides[axis] * std::max<int64_t>(sizes[axis], 1);
    return true;
  };
  if (!orders(1)) return false;
  for (int64_t axis = dims - 1; axis >= 2; --axis) {
    if (!orders(axis)) return false;
  }
  return orders(0);
}

void check_like(const char* name, const Tensor& value, const Tensor& x) {
  STD_TORCH_CHECK(value.is_cpu(), name, " must be on the CPU, as x is");
  STD_TORCH_CHECK(value.scalar_type() == x.scalar_type(), name, " must have the dtype of x");
  STD_TORCH_CHECK(value.is_contiguous(), name, " must be contiguous");
}

std::optional<Tensor> check_vector(const char* name, const std::optional<Tensor>& value, const Tensor& x,
                                   int64_t size) {
  if (!value.has_value()) return std::nullopt;
  STD_TORCH_CHECK(value->dim() == 1 && value->size(0) == size, name, " must have shape (", size, ")");
  const Tensor dense = to_contiguous(*value);
  check_like(name, dense, x);
  return dense;
}

void check_gradient(const Tensor& grad, const Tensor& x, const ConvProblem& problem, int64_t channels) {
  STD_TORCH_CHECK(grad.is_cpu() && grad.scalar_type() == x.scalar_type(), "grad must have the device and dtype of x");
  bool fits = grad.dim() == x.dim() && grad.size(0) == problem.batch && grad.size(1) == channels;
  for (int64_t axis = 2; fits && axis < x.dim(); ++axis) {
    fits = grad.size(axis) == problem.output[3 - x.dim() + axis];
  }
  STD_TORCH_CHECK(fits, "grad must have the shape of the operator's output");
}

Tensor empty_contiguous(const Tensor& like) {
  const std::vector<int64_t> sizes(like.sizes().begin(), like.sizes().end());
  return empty_tensor(sizes, like.scalar_type());
}

ConvProblem make_problem(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& stride,
                         const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(x.dim() >= 3 && x.dim() <= 5, "x must have 3 to 5 dimensions, got ", x.dim());
  STD_TORCH_CHECK(weight.dim() == x.dim() && weight.size(1) == 1,
                  "depthwise weight must have shape (C * M, 1, *kernel)");
  std::vector<int64_t> kernel_size;
  for (int64_t axis = 2; axis < weight.dim(); ++axis) kernel_size.push_back(weight.size(axis));
  const ConvProblem problem = make_problem(x, weight.size(0), kernel_size, stride, padding, dilation);
  check_like("depthwise weight", weight, x);
  return problem;
}

ConvProblem make_problem(const Tensor& x, int64_t inner_channels, const std::vector<int64_t>& kernel_size,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(x.is_cpu(), "x must be on the CPU");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16,
                  "x must be float32 or bfloat16");
  const ElementType type = element_type_of(x);
  const std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  return make_problem(sizes, type, inner_channels, kernel_size, stride, padding, dilation);
}

ConvProblem make_problem(const std::vector<int64_t>& sizes, ElementType type, int64_t inner_channels,
                         const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                         const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  const int64_t axes = static_cast<int64_t>(sizes.size()) - 2;
  STD_TORCH_CHECK(axes >= 1 && axes <= 3, "x must have 3 to 5 dimensions, got ", axes + 2);
  STD_TORCH_CHECK(sizes[1] >= 1 && inner_channels >= 1 && inner_channels % sizes[1] == 0,
                  "depthwise weight must have a multiple of x's ", sizes[1], " channels, got ", inner_channels);
  const auto count = static_cast<std::size_t>(axes);
  STD_TORCH_CHECK(
      kernel_size.size() == count && stride.size() == count && dilation.size() == count && padding.size() == 2 * count,
      "kernel size, stride and dilation must have ", axes, " entries, padding ", 2 * axes);

  ConvProblem problem = {};
  problem.batch = sizes[0];
  problem.channels = sizes[1];
  problem.inner_channels = inner_channels;
  problem.multiplier = problem.inner_channels / problem.channels;
  problem.element_type = type;
  for (int64_t axis = 0; axis < 3; ++axis) {
    problem.input[axis] = problem.output[axis] = problem.kernel[axis] = 1;
    problem.stride[axis] = problem.dilation[axis] = 1;
    problem.pad_low[axis] = 0;
  }
  for (int64_t i = 0; i < axes; ++i) {
    const int64_t axis = 3 - axes + i;
    const auto at = static_cast<std::size_t>(i);
    const int64_t size = sizes[2 + at], kernel = kernel_size[at];
    const int64_t low = padding[2 * at], high = padding[2 * at + 1];
    STD_TORCH_CHECK(stride[at] >= 1 && stride[at] <= kLargest && dilation[at] >= 1 && dilation[at] <= kLargest,
                    "stride and dilation must be between 1 and ", kLargest);
    STD_TORCH_CHECK(low >= -kLargest && low <= kLargest && high >= -kLargest && high <= kLargest,
                    "padding must be between -", kLargest, " and ", kLargest);
    STD_TORCH_CHECK(kernel >= 1 && kernel <= kLargest, "kernel size must be between 1 and ", kLargest);
    STD_TORCH_CHECK(size + std::min<int64_t>(low, 0) + std::min<int64_t>(high, 0) >= 1,
                    "padding crops the whole input along spatial axis ", i);
    const int64_t room = size + low + high - dilation[at] * (kernel - 1) - 1;
    STD_TORCH_CHECK(room >= 0, "output size must be at least 1 along spatial axis ", i);
    problem.input[axis] = size;
    problem.output[axis] = room / stride[at] + 1;
    problem.kernel[axis] = kernel;
    problem.stride[axis] = stride[at];
    problem.dilation[axis] = dilation[at];
    problem.pad_low[axis] = low;
  }
  return problem;
}

Activation parse_activation(const std::string& name) {
  for (std::size_t i = 0; i < std::size(kActivations); ++i) {
    if (name == kActivations[i]) return static_cast<Activation>(i);
  }
  STD_TORCH_CHECK(false, "unknown activation '", name, "'; valid: none, relu, relu6, silu, hardswish, gelu");
}

const char* activation_name(int64_t number) {
  STD_TORCH_CHECK(number >= 0 && number < static_cast<int64_t>(std::size(kActivations)),
                  "a value's activation is unknown");
  return kActivations[number];
}

Residual parse_residual(const std::string& name) {
  static constexpr const char* kNames[] = {"none", "input", "depthwise"};
  for (int32_t i = 0; i < 3; ++i) {
    if (name == kNames[i]) return static_cast<Residual>(i);
  }
  STD_TORCH_CHECK(false, "unknown residual '", name, "'; valid: none, input, depthwise");
}

namespace {

// Whether x is a tensor whose elements a copy of ours moves, faster than PyTorch's.
bool copies_layout(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  return x.is_contiguous() && x.numel() > 0 && (type == ScalarType::Float || type == ScalarType::BFloat16);
}

int64_t pixels_of(const Tensor& x) { return x.numel() / std::max<int64_t>(1, x.size(0) * x.size(1)); }

// Whether x, of 4 or 5 axes, is what PyTorch calls contiguous in channels last.
bool is_dense_channels_last(const Tensor& x) {
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  int64_t expected = 1;
  const auto follows = [&](std::size_t axis) {
    if (sizes[axis] == 1) return true;
    const bool fits = strides[axis] == expected;
    expected *= sizes[axis];
    return fits;
  };
  if (!follows(1)) return false;
  for (std::size_t axis = sizes.size(); axis-- > 2;) {
    if (!follows(axis)) return false;
  }
  return follows(0);
}

}  // namespace

Tensor to_contiguous(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

Tensor to_channels_last(const Tensor& x) {
  if (x.dim() > 3 && is_dense_channels_last(x)) return x;
  const Tensor spatial = x.dim() == 3 ? torch::stable::unsqueeze(x, 2) : x;
  const MemoryFormat last = last_format(spatial.dim());
  if (!copies_layout(x) || is_channels_last(x)) return torch::stable::contiguous(spatial, last);
  const Tensor out = empty_output({spatial.sizes().begin(), spatial.sizes().end()}, x.scalar_type(), last);
  copy_to_channels_last(element_type_of(x), x.const_data_ptr(), x.size(0), x.size(1), pixels_of(x),
                        out.mutable_data_ptr());
  return out;
}

Tensor empty_channels_last(const ConvProblem& problem, int64_t channels, const Tensor& x) {
  const int64_t pixels = problem.output[0] * problem.output[1] * problem.output[2];
  // Where both layouts are the same memory, only the strides tell which one it is.
  const bool ambiguous = problem.batch == 0 || channels == 1 || pixels == 1;
  const MemoryFormat last = last_format(std::max<int64_t>(x.dim(), 4));
  const MemoryFormat format = ambiguous && !is_channels_last(x) ? MemoryFormat::Contiguous : last;
  std::vector<int64_t> sizes = {problem.batch, channels};
  if (x.dim() == 5) sizes.push_back(problem.output[0]);
  sizes.push_back(problem.output[1]);
  sizes.push_back(problem.output[2]);
  return empty_output(sizes, x.scalar_type(), format);
}

Tensor empty_in_layout_of(const Tensor& x, int64_t channels, const std::vector<int64_t>& spatial) {
  const bool last = is_channels_last(x);
  std::vector<int64_t> sizes = {x.size(0), channels};
  if (last && spatial.size() == 1) sizes.push_back(1);  // no memory format has three axes
  sizes.insert(sizes.end(), spatial.begin(), spatial.end());
  const MemoryFormat format = last ? last_format(static_cast<int64_t>(sizes.size())) : MemoryFormat::Contiguous;
  const Tensor out = empty_output(sizes, x.scalar_type(), format);
  return last && spatial.size() == 1 ? torch::stable::squeeze(out, 2) : out;
}

Tensor with_a_unit_stride(const Tensor& x, const Tensor& like) {
  if (x.stride(1) == 1 || x.stride(x.dim() - 1) == 1) return x;
  if (!is_channels_last(like) || x.dim() == 3) return to_contiguous(x);
  return torch::stable::contiguous(x, last_format(x.dim()));
}

Strides strides_of(const Tensor& x) {
  Strides strides = {x.stride(0), x.stride(1), {0, 0, 0}};
  const int64_t axes = x.dim() - 2;
  for (int64_t i = 0; i < axes; ++i) strides.axis[3 - axes + i] = x.stride(2 + i);
  return strides;
}

Tensor in_layout_of(const Tensor& x, Tensor out) {
  if (!is_channels_last(x) && !out.is_contiguous()) {
    const Tensor last = out;
    out = empty_output({last.sizes().begin(), last.sizes().end()}, last.scalar_type(), MemoryFormat::Contiguous);
    copy_from_channels_last(element_type_of(last), last.const_data_ptr(), last.size(0), last.size(1), pixels_of(last),
                            out.mutable_data_ptr());
  }
  return x.dim() == 3 ? torch::stable::squeeze(out, 2) : out;
}

const void* data_or_null(const std::optional<Tensor>& value) {
  return value.has_value() ? value->const_data_ptr() : nullptr;
}

}  // namespace dwsep
