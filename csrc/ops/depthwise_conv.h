#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace dwsep {

torch::stable::Tensor depthwise_conv(const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
                                     const std::optional<torch::stable::Tensor>& bias,
                                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                     const std::vector<int64_t>& dilation, const std::string& activation);

}  // namespace dwsep
