#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace dwsep {

torch::stable::Tensor separable_conv(const torch::stable::Tensor& x, const torch::stable::Tensor& depthwise_weight,
                                     const torch::stable::Tensor& pointwise_weight,
                                     const std::optional<torch::stable::Tensor>& depthwise_bias,
                                     const std::optional<torch::stable::Tensor>& pointwise_bias,
                                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                     const std::vector<int64_t>& dilation, const std::string& inner_activation,
                                     const std::string& activation, const std::string& residual);

// Gradients for x (in its layout), both weights and both biases; empty where output_mask asks for none.
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor,
           torch::stable::Tensor>
separable_conv_backward(const torch::stable::Tensor& grad, const torch::stable::Tensor& x,
                        const torch::stable::Tensor& depthwise_weight, const torch::stable::Tensor& pointwise_weight,
                        const std::optional<torch::stable::Tensor>& depthwise_bias,
                        const std::optional<torch::stable::Tensor>& pointwise_bias, const std::vector<int64_t>& stride,
                        const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                        const std::string& inner_activation, const std::string& activation, const std::string& residual,
                        const std::vector<bool>& output_mask);

// The weights of a separable convolution in the order of the kernels in use, float32, for separable_conv_packed. With
// `bfloat16`, float32 pointwise weights and what meets them may be rounded to it for the product.
torch::stable::Tensor pack_separable_weights(const torch::stable::Tensor& depthwise_weight,
                                             const torch::stable::Tensor& pointwise_weight,
                                             const std::optional<torch::stable::Tensor>& depthwise_bias,
                                             const std::optional<torch::stable::Tensor>& pointwise_bias,
                                             int64_t depth_multiplier, bool bfloat16);

// separable_conv with weights packed before: for inference, where they stay the same from call to call.
torch::stable::Tensor separable_conv_packed(const torch::stable::Tensor& x, const torch::stable::Tensor& packed,
                                            int64_t inner_channels, int64_t out_channels,
                                            const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                                            const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                                            const std::string& inner_activation, const std::string& activation,
                                            const std::string& residual, bool bfloat16);

// A depthwise weight (C * M, 1, *kernel) and its bias in the order of the kernels, for inference programs.
torch::stable::Tensor pack_depthwise_weights(const torch::stable::Tensor& weight,
                                             const std::optional<torch::stable::Tensor>& bias);

// Elements of what pack_separable_weights returns.
int64_t packed_separable_size(int64_t inner_channels, int64_t multiplier, int64_t taps, int64_t out_channels,
                              bool bfloat16);

}  // namespace dwsep
