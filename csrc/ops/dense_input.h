// The images and the weight of a dense convolution as a pointwise stage takes them, checked; float32 alone.
#pragma once

#include "cpu/patches.h"
#include "cpu/pointwise_stage_kernel.h"
#include "ops/stage_arguments.h"

namespace dwsep {

class DenseInput {
 public:
  DenseInput(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& stride,
             const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation);
  DenseInput(const DenseInput&) = delete;
  DenseInput& operator=(const DenseInput&) = delete;

  std::vector<int64_t> output_sizes() const;
  // Valid as long as this is.
  PointwiseStage stage() const;
  // An uninitialised gradient of the weight as the stage computes it, and that one in the order of the weight.
  Tensor empty_gradient() const;
  Tensor in_order_of_the_weight(const Tensor& gradient) const;

 private:
  StageInput input_;
  Tensor weight_;  // contiguous
  ConvProblem problem_;
  Patches patches_;
  Tensor ordered_;  // (K, elements of a patch)

  template <class F>
  void for_elements(const F& f) const;
};

}  // namespace dwsep
