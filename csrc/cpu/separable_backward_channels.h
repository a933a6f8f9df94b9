// A separable backward pass of few pixels and many channels, a group of these after the other.
#pragma once

#include <cstdint>

#include "cpu/separable_backward_plan.h"
#include "cpu/separable_backward_rows.h"

namespace dwsep {

// The panels of all pixels are made first; then a thread takes a group of channels from the product with its part of
// the pointwise weight to all that is wanted of it. So that weight is packed where it is used, its gradient's sums and
// the planes between the factors are a thread's own and stay in its cache, and nothing is added up at the end.
class SeparableBackwardChannels {
 public:
  SeparableBackwardChannels(const SeparableBackwardPlan& plan, const WeightSources& weights, bool add_depthwise)
      : plan_(plan), rows_(plan), weights_(weights), add_depthwise_(add_depthwise) {}

  // The depthwise weights are packed; depthwise_sums are those of one part.
  void run(float* depthwise_sums) const;

 private:
  const SeparableBackwardPlan& plan_;
  SeparableBackwardRows rows_;
  const WeightSources& weights_;
  bool add_depthwise_;

  struct Memory;
  int64_t rows() const { return plan_.problem.batch * plan_.rows_per_image; }
  int64_t pixels() const { return rows() * plan_.problem.output[kWidth]; }
  void gather(const RowPanels& panels) const;
  void write_bias(const RowPanels& panels) const;
  void run_group(const RowPanels& panels, const float* operand, int64_t group, const Memory& memory,
                 float* depthwise_sums) const;
};

}  // namespace dwsep
