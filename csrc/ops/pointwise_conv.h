#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

namespace dwsep {

// With `bfloat16`, weights and inputs may be rounded to it for the product, which is still summed up in float32.
torch::stable::Tensor pack_pointwise_weights(const torch::stable::Tensor& weight,
                                             const std::optional<torch::stable::Tensor>& bias, bool bfloat16);

// activation(convolution + bias) + residual in channels last, with what pack_pointwise_weights returned for the same
// `bfloat16`.
torch::stable::Tensor pointwise_conv_packed(const torch::stable::Tensor& x, const torch::stable::Tensor& packed,
                                            int64_t out_channels, const std::string& activation,
                                            const std::optional<torch::stable::Tensor>& residual, bool bfloat16);

int64_t packed_pointwise_size(int64_t channels, int64_t out_channels);

}  // namespace dwsep
