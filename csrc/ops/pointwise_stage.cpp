#include <torch/csrc/stable/ops.h>

#include "cpu/pointwise_stage_kernel.h"
#include "ops/stage_arguments.h"
#include "ops/stages.h"

namespace dwsep {
namespace {

// The weight, contiguous, which the stage points into.
Tensor check_weight(const Tensor& weight, const Tensor& x) {
  STD_TORCH_CHECK(weight.dim() == x.dim() && weight.size(0) >= 1 && weight.numel() == weight.size(0) * x.size(1),
                  "pointwise weight must have shape (K, ", x.size(1), ", 1, ...)");
  const Tensor dense = torch::stable::contiguous(weight);
  check_like("pointwise weight", dense, x);
  return dense;
}

PointwiseStage make_stage(const StageInput& input, const Tensor& weight) {
  return {input.pixels(),        input.channels(), weight.size(0), input.data(),     input.scale_or_null(),
          input.shift_or_null(), input.activation, floats(weight), input.channels(), weight.size(0)};
}

}  // namespace

StageResult pointwise_stage(const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                            const std::string& activation, const Tensor& weight, const std::optional<Tensor>& bias) {
  const StageInput input(x, scale, shift, activation);
  const Tensor dense = check_weight(weight, x);
  const int64_t outputs = dense.size(0);
  const std::optional<Tensor> dense_bias = check_vector("pointwise bias", bias, x, outputs);
  const Tensor y = empty_stage_output(x.size(0), outputs, spatial_of(x));
  const Tensor sums = empty_sums(outputs);
  pointwise_stage_forward(make_stage(input, dense), static_cast<const float*>(data_or_null(dense_bias)),
                          mutable_floats(y), static_cast<double*>(sums.mutable_data_ptr()));
  return {y, sums};
}

StageGradientResult pointwise_stage_backward(const Tensor& grad, const Tensor& y,
                                             const std::optional<Tensor>& correction, const Tensor& x,
                                             const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                                             const std::string& activation, const Tensor& weight, bool has_bias,
                                             const std::vector<bool>& output_mask) {
  const StageInput input(x, scale, shift, activation);
  const Tensor dense = check_weight(weight, x);
  STD_TORCH_CHECK(output_mask.size() == 2, "output_mask must have 2 entries, got ", output_mask.size());
  const std::vector<int64_t> sizes = sizes_of(x.size(0), dense.size(0), spatial_of(x));
  const Tensor gradient = check_output_like("grad", grad, sizes);
  const Tensor raw = correction.has_value() ? check_output_like("y", y, sizes) : gradient;
  check_correction(correction, x, dense.size(0));

  // Outputs of an operator must not share memory, an empty one neither.
  const auto none = [] { return empty_float({0}); };
  const bool wants_x = output_mask[0], wants_affine = wants_x && scale.has_value();
  const bool wants_bias = output_mask[1] && has_bias;
  const Tensor x_gradient = wants_x ? empty_stage_output(x.size(0), x.size(1), spatial_of(x)) : none();
  const Tensor affine = wants_affine ? empty_sums(x.size(1)) : none();
  const Tensor weight_gradient = output_mask[1] ? empty_contiguous(dense) : none();
  const Tensor bias_gradient = wants_bias ? empty_float({dense.size(0)}) : none();
  pointwise_stage_backward(make_stage(input, dense),
                           {floats(gradient), floats(raw), static_cast<const float*>(data_or_null(correction)),
                            wants_x ? mutable_floats(x_gradient) : nullptr,
                            wants_affine ? static_cast<double*>(affine.mutable_data_ptr()) : nullptr,
                            output_mask[1] ? mutable_floats(weight_gradient) : nullptr,
                            wants_bias ? mutable_floats(bias_gradient) : nullptr});
  return {x_gradient, affine, weight_gradient, bias_gradient};
}

}  // namespace dwsep
