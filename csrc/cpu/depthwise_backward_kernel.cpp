#include "cpu/depthwise_backward_kernel.h"

#include <algorithm>

#include "cpu/depthwise_backward_tile.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace dwsep {

void depthwise_conv_backward(const ConvProblem& problem, const WeightSources& weights, Activation activation,
                             const DepthwiseBackwardTensors& tensors) {
  const TilePurpose purpose =
      activation == Activation::kNone ? TilePurpose::kBackward : TilePurpose::kBackwardRecompute;
  PlanePlan plan(kernels(), problem, purpose, tensors.gradient_strides.channel == 1);
  const int64_t groups = plan.groups();
  // Parts of the images, each with sums of its own, so that there is work for the threads where channels are few. Their
  // number depends on the shape alone, so that the result does not depend on the threads.
  const int64_t items = problem.batch * plan.tile_count();
  const int64_t parts = std::clamp<int64_t>(ceil_div(16, groups), 1, std::max<int64_t>(1, items));
  const int64_t part_floats = plan.blocks * sums_of_block(plan);
  float* packed = scratch(Scratch::kPack, static_cast<std::size_t>(plan.weight_floats() + parts * part_floats));
  float* sums = packed + plan.weight_floats();
  plan.pack(weights, packed);
  std::fill_n(sums, parts * part_floats, 0.0f);

  parallel_for(groups * parts, 1, [&](int64_t begin, int64_t end) {
    float* memory = scratch(Scratch::kPanel, static_cast<std::size_t>(BackwardTile::floats(plan)));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t group = unit % groups, part = unit / groups;
      BackwardTile tile(plan, tensors, activation, memory, sums + part * part_floats);
      for (int64_t item = items * part / parts; item < items * (part + 1) / parts; ++item) {
        tile.run(item / plan.tile_count(), item % plan.tile_count(), group * plan.group);
      }
    }
  });
  if (tensors.weight_gradient != nullptr || tensors.bias_gradient != nullptr)
    write_weight_gradients(plan, tensors, sums, parts);
}

}  // namespace dwsep
