#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace dwsep {

torch::stable::Tensor separable_conv(const torch::stable::Tensor& x, const torch::stable::Tensor& depthwise_weight,
                                     const torch::stable::Tensor& pointwise_weight,
                                     const std::optional<torch::stable::Tensor>& depthwise_bias,
                                     const std::optional<torch::stable::Tensor>& pointwise_bias,
                                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                     const std::vector<int64_t>& dilation, const std::string& inner_activation,
                                     const std::string& activation, const std::string& residual);

}  // namespace dwsep
