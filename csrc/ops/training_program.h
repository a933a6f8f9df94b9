// The stages of a stretch of a network, one call in each direction: src/dwsep/ops/training_program.py says what they
// do.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace dwsep {

std::vector<torch::stable::Tensor> training_program(const std::vector<torch::stable::Tensor>& inputs,
                                                    const std::vector<torch::stable::Tensor>& parameters,
                                                    const std::vector<torch::stable::Tensor>& running,
                                                    const std::vector<int64_t>& steps,
                                                    const std::vector<int64_t>& activations,
                                                    const std::vector<double>& norms, bool rounds);

std::vector<torch::stable::Tensor> training_program_backward(
    const std::vector<torch::stable::Tensor>& grads, const std::vector<torch::stable::Tensor>& inputs,
    const std::vector<torch::stable::Tensor>& parameters, const std::vector<torch::stable::Tensor>& made,
    const std::vector<int64_t>& steps, const std::vector<int64_t>& activations, const std::vector<double>& norms,
    const std::vector<int64_t>& outputs, const std::vector<bool>& wants, bool rounds);

}  // namespace dwsep
