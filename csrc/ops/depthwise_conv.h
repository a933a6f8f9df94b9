#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace dwsep {

torch::stable::Tensor depthwise_conv(const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
                                     const std::optional<torch::stable::Tensor>& bias,
                                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                     const std::vector<int64_t>& dilation, const std::string& activation);

// Gradients for x (in its layout), weight and bias; empty where output_mask asks for none.
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor> depthwise_conv_backward(
    const torch::stable::Tensor& grad, const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
    const std::optional<torch::stable::Tensor>& bias, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, const std::string& activation,
    const std::vector<bool>& output_mask);

}  // namespace dwsep
