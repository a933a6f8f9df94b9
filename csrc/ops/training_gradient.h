// A sum of gradients on the way back through a training program.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace dwsep {

// A gradient, and whether nobody else holds its memory, so that more may be added in place.
struct Gradient {
  std::optional<torch::stable::Tensor> tensor;
  bool own = false;

  void add(const torch::stable::Tensor& more, bool more_own);
};

}  // namespace dwsep
