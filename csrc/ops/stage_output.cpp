#include <torch/csrc/stable/ops.h>

#include "cpu/stage_gate_kernel.h"
#include "cpu/stage_output_kernel.h"
#include "ops/stage_arguments.h"
#include "ops/stages.h"

namespace dwsep {
namespace {

StageOutput make_output(const StageInput& input) {
  return {input.data(), input.scale_or_null(), input.shift_or_null(), input.activation,
          nullptr,      input.pixels(),        input.channels(),      nullptr};
}

}  // namespace

Tensor stage_output(const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                    const std::string& activation, const std::optional<Tensor>& residual) {
  const StageInput input(x, scale, shift, activation);
  const Tensor out = empty_stage_output(x.size(0), x.size(1), spatial_of(x));
  StageOutput job = make_output(input);
  job.out = mutable_floats(out);
  std::optional<Tensor> addend;
  if (residual.has_value()) {
    addend = check_output_like("residual", *residual, sizes_of(x.size(0), x.size(1), spatial_of(x)));
    job.residual = floats(*addend);
  }
  stage_output_forward(job);
  return out;
}

StageResult stage_output_backward(const Tensor& grad, const Tensor& x, const std::optional<Tensor>& scale,
                                  const std::optional<Tensor>& shift, const std::string& activation) {
  const StageInput input(x, scale, shift, activation);
  const Tensor gradient = check_output_like("grad", grad, sizes_of(x.size(0), x.size(1), spatial_of(x)));
  const Tensor x_gradient = empty_stage_output(x.size(0), x.size(1), spatial_of(x));
  const Tensor affine = scale.has_value() ? empty_sums(x.size(1)) : empty_float({0});
  const PendingImages one = {input.data(),   input.scale_or_null(), input.shift_or_null(), input.activation, 1,
                             input.pixels(), input.channels()};
  stage_gated_backward(one, floats(gradient), nullptr, nullptr, mutable_floats(x_gradient),
                       scale.has_value() ? static_cast<double*>(affine.mutable_data_ptr()) : nullptr);
  return {x_gradient, affine};
}

}  // namespace dwsep
