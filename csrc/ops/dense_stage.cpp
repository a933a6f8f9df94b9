#include <torch/csrc/stable/ops.h>

#include "ops/dense_input.h"
#include "ops/stages.h"

namespace dwsep {
namespace {

Tensor check_dense_weight(const Tensor& weight, const Tensor& x) {
  STD_TORCH_CHECK(
      x.dim() == 4 && weight.dim() == 4 && weight.size(0) >= 1 && weight.size(1) == x.size(1) && weight.numel() > 0,
      "dense weight must have shape (K, ", x.size(1), ", kernel height, kernel width)");
  const Tensor dense = torch::stable::contiguous(weight);
  check_like("dense weight", dense, x);
  return dense;
}

ConvProblem make_dense_problem(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& stride,
                               const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  ConvProblem problem =
      make_problem(x, weight.numel() / weight.size(0), {weight.size(2), weight.size(3)}, stride, padding, dilation);
  problem.out_channels = weight.size(0);
  return problem;
}

}  // namespace

DenseInput::DenseInput(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& stride,
                       const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation)
    : input_(x, std::nullopt, std::nullopt, "none"),
      weight_(check_dense_weight(weight, x)),
      problem_(make_dense_problem(x, weight_, stride, padding, dilation)),
      patches_(problem_, input_.data()),
      ordered_(empty_gradient()) {
  const float* source = floats(weight_);
  float* target = mutable_floats(ordered_);
  for_elements([&](int64_t ordered, int64_t element) { target[ordered] = source[element]; });
}

// f(place in the order of patches, place in the weight).
template <class F>
void DenseInput::for_elements(const F& f) const {
  const int64_t outputs = weight_.size(0), channels = weight_.size(1), taps = weight_.size(2) * weight_.size(3);
  for (int64_t k = 0; k < outputs; ++k) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t c = 0; c < channels; ++c) {
        f((k * taps + tap) * channels + c, (k * channels + c) * taps + tap);
      }
    }
  }
}

std::vector<int64_t> DenseInput::output_sizes() const {
  return sizes_of(problem_.batch, problem_.out_channels, {problem_.output + 1, problem_.output + 3});
}

PointwiseStage DenseInput::stage() const {
  const int64_t pixels = problem_.batch * problem_.output[1] * problem_.output[2];
  return {
      pixels,           problem_.inner_channels, problem_.out_channels, nullptr,  nullptr, nullptr, Activation::kNone,
      floats(ordered_), problem_.inner_channels, problem_.out_channels, &patches_};
}

Tensor DenseInput::empty_gradient() const { return empty_float({weight_.size(0), weight_.numel() / weight_.size(0)}); }

Tensor DenseInput::in_order_of_the_weight(const Tensor& gradient) const {
  const Tensor found = empty_contiguous(weight_);
  const float* source = floats(gradient);
  float* target = mutable_floats(found);
  for_elements([&](int64_t ordered, int64_t element) { target[element] = source[ordered]; });
  return found;
}

StageResult dense_stage(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation) {
  const DenseInput input(x, weight, stride, padding, dilation);
  const int64_t outputs = weight.size(0);
  const std::optional<Tensor> dense_bias = check_vector("dense bias", bias, x, outputs);
  const std::vector<int64_t> sizes = input.output_sizes();
  const Tensor y = empty_stage_output(sizes[0], outputs, {sizes.begin() + 2, sizes.end()});
  const Tensor sums = empty_sums(outputs);
  pointwise_stage_forward(input.stage(), static_cast<const float*>(data_or_null(dense_bias)), mutable_floats(y),
                          static_cast<double*>(sums.mutable_data_ptr()));
  return {y, sums};
}

StageResult dense_stage_backward(const Tensor& grad, const Tensor& y, const std::optional<Tensor>& correction,
                                 const Tensor& x, const Tensor& weight, bool has_bias,
                                 const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                 const std::vector<int64_t>& dilation) {
  const DenseInput input(x, weight, stride, padding, dilation);
  const int64_t outputs = weight.size(0);
  const Tensor gradient = check_output_like("grad", grad, input.output_sizes());
  const Tensor raw = correction.has_value() ? check_output_like("y", y, input.output_sizes()) : gradient;
  check_correction(correction, x, outputs);
  const Tensor ordered = input.empty_gradient();
  const Tensor of_bias = empty_float({has_bias ? outputs : 0});
  pointwise_stage_backward(input.stage(),
                           {floats(gradient), floats(raw), static_cast<const float*>(data_or_null(correction)), nullptr,
                            nullptr, mutable_floats(ordered), has_bias ? mutable_floats(of_bias) : nullptr});
  return {input.in_order_of_the_weight(ordered), of_bias};
}

}  // namespace dwsep
