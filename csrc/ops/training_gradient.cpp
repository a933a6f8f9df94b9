#include "ops/training_gradient.h"

#include <torch/csrc/stable/ops.h>

#include "cpu/stage_output_kernel.h"
#include "ops/stage_arguments.h"

namespace dwsep {
namespace {

// sum += more, element by element.
void add_to(const Tensor& sum, const Tensor& more) {
  if (sum.scalar_type() == torch::headeronly::ScalarType::Double) {
    auto* values = static_cast<double*>(sum.mutable_data_ptr());
    const auto* added = static_cast<const double*>(more.const_data_ptr());
    for (int64_t i = 0, count = sum.numel(); i < count; ++i) values[i] += added[i];
    return;
  }
  StageOutput job = {};
  job.x = floats(sum);
  job.residual = floats(more);
  job.activation = Activation::kNone;
  job.out = mutable_floats(sum);
  // Pixels of a line each, as the kernel shares them out; a rest by hand.
  constexpr int64_t kLine = 64;
  job.channels = kLine;
  job.pixels = sum.numel() / kLine;
  stage_output_forward(job);
  for (int64_t i = job.pixels * kLine, count = sum.numel(); i < count; ++i) job.out[i] += job.residual[i];
}

}  // namespace

void Gradient::add(const Tensor& more, bool more_own) {
  if (more.numel() == 0) return;
  if (!tensor.has_value()) {
    tensor = more;
    own = more_own;
    return;
  }
  // Sums are taken over memory: both must lie alike.
  const Tensor like = more.dim() == 4
                          ? check_output_like("grad", more, {tensor->sizes().begin(), tensor->sizes().end()})
                          : to_contiguous(more);
  if (!own) {
    const bool last = tensor->dim() == 4;
    const Tensor dense = last ? to_channels_last(*tensor) : to_contiguous(*tensor);
    tensor = torch::stable::clone(dense);
    own = true;
  }
  add_to(*tensor, like);
}

}  // namespace dwsep
