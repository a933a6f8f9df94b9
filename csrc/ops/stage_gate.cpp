#include <torch/csrc/stable/ops.h>

#include "cpu/stage_gate_kernel.h"
#include "ops/stage_arguments.h"
#include "ops/stages.h"

namespace dwsep {
namespace {

PendingImages images_of(const StageInput& input) {
  const int64_t images = input.x.size(0);
  const int64_t pixels = images == 0 ? 0 : input.pixels() / images;
  return {input.data(), input.scale_or_null(), input.shift_or_null(), input.activation, images,
          pixels,       input.channels()};
}

Tensor image_sums(const StageInput& input, const float* gradient, double factor) {
  const Tensor out = empty_float({input.x.size(0), input.channels()});
  stage_image_sums(images_of(input), gradient, factor, mutable_floats(out));
  return out;
}

}  // namespace

Tensor stage_pool(const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                  const std::string& activation) {
  const StageInput input(x, scale, shift, activation);
  return image_sums(input, nullptr, 1.0 / static_cast<double>(images_of(input).pixels));
}

Tensor stage_gate(const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                  const std::string& activation, const Tensor& gate) {
  const StageInput input(x, scale, shift, activation);
  const Tensor gates = check_per_image("gate", gate, input.x);
  const Tensor out = empty_stage_output(x.size(0), x.size(1), spatial_of(x));
  stage_gated(images_of(input), floats(gates), mutable_floats(out));
  return out;
}

Tensor stage_gate_gradient(const Tensor& grad, const Tensor& x, const std::optional<Tensor>& scale,
                           const std::optional<Tensor>& shift, const std::string& activation) {
  const StageInput input(x, scale, shift, activation);
  const Tensor gradient = check_output_like("grad", grad, sizes_of(x.size(0), x.size(1), spatial_of(x)));
  return image_sums(input, floats(gradient), 1.0);
}

StageResult stage_squeeze_backward(const std::optional<Tensor>& grad, const std::optional<Tensor>& gate,
                                   const std::optional<Tensor>& grad_mean, const Tensor& x,
                                   const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                                   const std::string& activation) {
  const StageInput input(x, scale, shift, activation);
  STD_TORCH_CHECK(grad.has_value() == gate.has_value(), "grad and gate must be given together");
  std::optional<Tensor> gradient, gates;
  if (grad.has_value()) {
    gradient = check_output_like("grad", *grad, sizes_of(x.size(0), x.size(1), spatial_of(x)));
    gates = check_per_image("gate", *gate, input.x);
  }
  const Tensor means = grad_mean.has_value() ? check_per_image("grad_mean", *grad_mean, input.x)
                                             : torch::stable::fill_(empty_float({x.size(0), x.size(1)}), 0.0);
  const Tensor x_gradient = empty_stage_output(x.size(0), x.size(1), spatial_of(x));
  const Tensor affine = scale.has_value() ? empty_sums(x.size(1)) : empty_float({0});
  stage_gated_backward(images_of(input), gradient.has_value() ? floats(*gradient) : nullptr,
                       gates.has_value() ? floats(*gates) : nullptr, floats(means), mutable_floats(x_gradient),
                       scale.has_value() ? static_cast<double*>(affine.mutable_data_ptr()) : nullptr);
  return {x_gradient, affine};
}

}  // namespace dwsep
