// dwsep::resize_bilinear and its backward.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

namespace dwsep {

// x (N, C, H, W), in channels last the result too; `scales` is empty, or holds those of height and width.
torch::stable::Tensor resize_bilinear(const torch::stable::Tensor& x, const std::vector<int64_t>& size,
                                      bool align_corners, const std::vector<double>& scales);

// `size`: the height and width of x.
torch::stable::Tensor resize_bilinear_backward(const torch::stable::Tensor& grad, const std::vector<int64_t>& size,
                                               bool align_corners, const std::vector<double>& scales);

}  // namespace dwsep
