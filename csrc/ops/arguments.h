// Checks and conversions which the operators share. Python checks first, with better messages; these keep a direct call
// of an operator from reading or writing out of bounds.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cpu/conv_problem.h"
#include "cpu/plane_jobs.h"

namespace dwsep {

using torch::stable::Tensor;

// The problem of a depthwise convolution of x; everything but segments and out_channels.
ConvProblem make_problem(const Tensor& x, int64_t inner_channels, const std::vector<int64_t>& kernel_size,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation);
// The same for an x of these sizes (N, C, *spatial).
ConvProblem make_problem(const std::vector<int64_t>& sizes, ElementType type, int64_t inner_channels,
                         const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                         const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation);
// The same with a weight (C * M, 1, *kernel), which is checked.
ConvProblem make_problem(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& stride,
                         const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation);

// The value, copied where its elements are not consecutive, as in a slice or an expanded tensor.
std::optional<Tensor> check_vector(const char* name, const std::optional<Tensor>& value, const Tensor& x, int64_t size);
// The gradient of an output with `channels` channels.
void check_gradient(const Tensor& grad, const Tensor& x, const ConvProblem& problem, int64_t channels);
void check_like(const char* name, const Tensor& value, const Tensor& x);

Activation parse_activation(const std::string& name);
const char* activation_name(int64_t number);
Residual parse_residual(const std::string& name);

// Of a tensor of float32 or bfloat16.
ElementType element_type_of(const Tensor& x);
// Whether the strides of x order its axes as channels last does.
bool is_channels_last(const Tensor& x);
// x, its elements consecutive: the same memory as x where they are so already, and then no call of PyTorch's
// dispatcher.
Tensor to_contiguous(const Tensor& x);
// x in channels last, dense, with 4 or 5 axes: the same memory as x where it is so already.
Tensor to_channels_last(const Tensor& x);
// An uninitialised channels-last tensor with `channels` channels and the problem's output size.
Tensor empty_channels_last(const ConvProblem& problem, int64_t channels, const Tensor& x);
// A result of empty_channels_last in the rank of x and in its layout.
Tensor in_layout_of(const Tensor& x, Tensor out);

Tensor empty_contiguous(const Tensor& like);
// An uninitialised tensor (N, channels, *spatial) in the layout of x.
Tensor empty_in_layout_of(const Tensor& x, int64_t channels, const std::vector<int64_t>& spatial);
// x itself where its channels or its last axis are consecutive, else a copy in the layout of `like`.
Tensor with_a_unit_stride(const Tensor& x, const Tensor& like);
Strides strides_of(const Tensor& x);

const void* data_or_null(const std::optional<Tensor>& value);

}  // namespace dwsep
