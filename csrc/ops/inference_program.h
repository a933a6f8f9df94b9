// A whole network's inference, or the part of one that runs on the kernels here, in one call.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace dwsep {

// src/dwsep/ops/inference_program.py says what the tables hold.
std::vector<torch::stable::Tensor> inference_program(const std::vector<torch::stable::Tensor>& inputs,
                                                     const torch::stable::Tensor& weights,
                                                     const torch::stable::Tensor& values,
                                                     const torch::stable::Tensor& steps,
                                                     const std::vector<int64_t>& output_sizes, int64_t workspace);

}  // namespace dwsep
