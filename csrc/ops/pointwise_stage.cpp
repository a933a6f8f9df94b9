#include <torch/csrc/stable/ops.h>

#include "cpu/pointwise_stage_kernel.h"
#include "ops/stage_arguments.h"
#include "ops/stages.h"

namespace dwsep {
namespace {

// The weight, contiguous.
Tensor check_weight(const Tensor& weight, const Tensor& x) {
  STD_TORCH_CHECK(weight.dim() == x.dim() && weight.size(0) >= 1 && weight.numel() == weight.size(0) * x.size(1),
                  "pointwise weight must have shape (K, ", x.size(1), ", 1, ...)");
  const Tensor dense = to_contiguous(weight);
  check_like("pointwise weight", dense, x);
  return dense;
}

// What a stage works on, checked.
struct PointwiseArguments {
  Tensor x;  // as given
  StageInput input;
  Tensor weight;
  std::optional<Tensor> gate;

  PointwiseArguments(const Tensor& given_x, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                     const std::string& activation, const std::optional<Tensor>& of_images, const Tensor& given)
      : x(given_x), input(x, scale, shift, activation), weight(check_weight(given, x)) {
    if (of_images.has_value()) gate = check_per_image("gate", *of_images, x);
  }

  PointwiseStage stage() const {
    PointwiseStage made = {input.pixels(),        input.channels(),      weight.size(0),   input.data(),
                           input.scale_or_null(), input.shift_or_null(), input.activation, floats(weight),
                           input.channels(),      weight.size(0)};
    made.rounds = input.rounds;
    if (gate.has_value()) {
      made.gate = floats(*gate);
      made.image_pixels = 1;
      for (const int64_t size : spatial_of(input.x)) made.image_pixels *= size;
    }
    return made;
  }
  StageResult forward(const std::optional<Tensor>& bias) const;
  // In place of the affine gradient the gate's, where there is a gate.
  StageGradientResult backward(const Tensor& grad, const Tensor& y, const std::optional<Tensor>& correction,
                               bool has_bias, const std::vector<bool>& output_mask) const;
};

StageResult PointwiseArguments::forward(const std::optional<Tensor>& bias) const {
  const int64_t outputs = weight.size(0);
  const std::optional<Tensor> dense_bias = check_vector("pointwise bias", bias, x, outputs);
  const Tensor y = empty_stage_output(x.size(0), outputs, spatial_of(x));
  const Tensor sums = empty_sums(outputs);
  pointwise_stage_forward(stage(), static_cast<const float*>(data_or_null(dense_bias)), mutable_floats(y),
                          static_cast<double*>(sums.mutable_data_ptr()));
  return {y, sums};
}

StageGradientResult PointwiseArguments::backward(const Tensor& grad, const Tensor& y,
                                                 const std::optional<Tensor>& correction, bool has_bias,
                                                 const std::vector<bool>& output_mask) const {
  const StageGradientTensors made(x, input.scale.has_value() && !gate.has_value(), weight, has_bias, output_mask);
  const OutputGradient output(grad, y, correction, x, sizes_of(x.size(0), weight.size(0), spatial_of(x)));
  const bool wants_gate = made.wants_x && gate.has_value();
  const Tensor of_gate = wants_gate ? empty_contiguous(*gate) : empty_float({0});
  pointwise_stage_backward(stage(), {floats(output.gradient), floats(output.raw), output.correction_or_null(),
                                     made.x_or_null(), made.affine_or_null(), made.weight_or_null(),
                                     made.bias_or_null(), wants_gate ? mutable_floats(of_gate) : nullptr});
  return {made.x, gate.has_value() ? of_gate : made.affine, made.weight, made.bias};
}

}  // namespace

StageResult pointwise_stage(const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                            const std::string& activation, const Tensor& weight, const std::optional<Tensor>& bias) {
  return PointwiseArguments(x, scale, shift, activation, std::nullopt, weight).forward(bias);
}

StageGradientResult pointwise_stage_backward(const Tensor& grad, const Tensor& y,
                                             const std::optional<Tensor>& correction, const Tensor& x,
                                             const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                                             const std::string& activation, const Tensor& weight, bool has_bias,
                                             const std::vector<bool>& output_mask) {
  return PointwiseArguments(x, scale, shift, activation, std::nullopt, weight)
      .backward(grad, y, correction, has_bias, output_mask);
}

StageResult gated_pointwise_stage(const Tensor& x, const std::optional<Tensor>& scale,
                                  const std::optional<Tensor>& shift, const std::string& activation, const Tensor& gate,
                                  const Tensor& weight, const std::optional<Tensor>& bias) {
  return PointwiseArguments(x, scale, shift, activation, gate, weight).forward(bias);
}

StageGradientResult gated_pointwise_stage_backward(const Tensor& grad, const Tensor& y,
                                                   const std::optional<Tensor>& correction, const Tensor& x,
                                                   const std::optional<Tensor>& scale,
                                                   const std::optional<Tensor>& shift, const std::string& activation,
                                                   const Tensor& gate, const Tensor& weight, bool has_bias,
                                                   const std::vector<bool>& output_mask) {
  return PointwiseArguments(x, scale, shift, activation, gate, weight)
      .backward(grad, y, correction, has_bias, output_mask);
}

}  // namespace dwsep
