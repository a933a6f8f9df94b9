#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>

#include "cpu/stage_output_kernel.h"
#include "ops/stage_arguments.h"
#include "ops/stages.h"

namespace dwsep {
namespace {

using torch::headeronly::ScalarType;

const double* check_sums(const char* name, const Tensor& sums) {
  STD_TORCH_CHECK(sums.is_cpu() && sums.scalar_type() == ScalarType::Double && sums.is_contiguous() &&
                      sums.dim() == 2 && sums.size(0) == 2,
                  name, " must be float64 with shape (2, C)");
  return static_cast<const double*>(sums.const_data_ptr());
}

const float* floats_or_null(const std::optional<Tensor>& value) {
  return static_cast<const float*>(data_or_null(value));
}

// running = (1 - momentum) * running + momentum * value, as torch rounds it.
void update_running(float* running, int64_t channel, double momentum, double value) {
  if (running == nullptr) return;
  float& place = running[channel];
  place = static_cast<float>((1.0 - momentum) * static_cast<double>(place) + momentum * value);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> stage_statistics(const Tensor& sums, int64_t count,
                                                            const std::optional<Tensor>& weight,
                                                            const std::optional<Tensor>& bias, double eps,
                                                            double momentum, const std::optional<Tensor>& running_mean,
                                                            const std::optional<Tensor>& running_var) {
  const double* totals = check_sums("sums", sums);
  const int64_t channels = sums.size(1);
  check_channels("weight", weight, channels);
  check_channels("bias", bias, channels);
  check_channels("running_mean", running_mean, channels);
  check_channels("running_var", running_var, channels);
  STD_TORCH_CHECK(count >= 1, "count must be at least 1, got ", count);
  const Tensor scale = empty_float({channels}), shift = empty_float({channels}), mean = empty_float({channels});
  const Tensor invstd = empty_float({channels});
  const float *gamma = floats_or_null(weight), *beta = floats_or_null(bias);
  // Fetched once: each of these is a call into PyTorch.
  float *scales = mutable_floats(scale), *shifts = mutable_floats(shift), *means = mutable_floats(mean);
  float* inverses = mutable_floats(invstd);
  float* means_kept = running_mean.has_value() ? mutable_floats(*running_mean) : nullptr;
  float* variances_kept = running_var.has_value() ? mutable_floats(*running_var) : nullptr;
  const auto pixels = static_cast<double>(count);
  for (int64_t c = 0; c < channels; ++c) {
    const double average = totals[c] / pixels;
    // A NaN stays one.
    const double spread = totals[channels + c] / pixels - average * average;
    const double variance = spread < 0.0 ? 0.0 : spread;
    const double inverse = 1.0 / std::sqrt(variance + eps);
    const double factor = gamma != nullptr ? inverse * static_cast<double>(gamma[c]) : inverse;
    scales[c] = static_cast<float>(factor);
    shifts[c] = static_cast<float>((beta != nullptr ? static_cast<double>(beta[c]) : 0.0) - average * factor);
    means[c] = static_cast<float>(average);
    inverses[c] = static_cast<float>(inverse);
    update_running(means_kept, c, momentum, average);
    update_running(variances_kept, c, momentum, variance * (pixels / std::max(pixels - 1.0, 1.0)));
  }
  return {scale, shift, mean, invstd};
}

std::tuple<Tensor, Tensor, Tensor> stage_correction(const Tensor& grad_affine, const Tensor& mean, const Tensor& invstd,
                                                    const std::optional<Tensor>& weight, int64_t count) {
  const double* grads = check_sums("grad_affine", grad_affine);
  const int64_t channels = grad_affine.size(1);
  check_channels("mean", mean, channels);
  check_channels("invstd", invstd, channels);
  check_channels("weight", weight, channels);
  STD_TORCH_CHECK(count >= 1, "count must be at least 1, got ", count);
  const Tensor correction = empty_float({2, channels});
  const Tensor grad_weight = empty_float({channels}), grad_bias = empty_float({channels});
  const float* gamma = floats_or_null(weight);
  const float *means = floats(mean), *inverses = floats(invstd);
  float *slopes = mutable_floats(correction), *constants = slopes + channels;
  float *of_weight = mutable_floats(grad_weight), *of_bias = mutable_floats(grad_bias);
  const auto pixels = static_cast<double>(count);
  for (int64_t c = 0; c < channels; ++c) {
    const double average = static_cast<double>(means[c]), inverse = static_cast<double>(inverses[c]);
    const double grad_shift = grads[channels + c], grad_scale = grads[c] - average * grad_shift;
    const double factor = gamma != nullptr ? inverse * static_cast<double>(gamma[c]) : inverse;
    // Twice the gradient of the variance, and the gradient of the mean, of each pixel. The second belongs to the first
    // as it is after rounding: together they still take nothing from the gradient's mean.
    const auto slope = static_cast<float>(-inverse * inverse * factor * grad_scale / pixels);
    slopes[c] = slope;
    constants[c] = static_cast<float>(-factor * grad_shift / pixels - static_cast<double>(slope) * average);
    of_weight[c] = static_cast<float>(grad_scale * inverse);
    of_bias[c] = static_cast<float>(grad_shift);
  }
  return {correction, grad_weight, grad_bias};
}

Tensor stage_sums(const Tensor& x) {
  const StageInput input(x, std::nullopt, std::nullopt, "none");
  const Tensor sums = empty_sums(input.channels());
  stage_sums(input.data(), input.pixels(), input.channels(), static_cast<double*>(sums.mutable_data_ptr()));
  return sums;
}

Tensor stage_corrected(const Tensor& grad, const Tensor& y, const Tensor& correction) {
  const StageInput input(y, std::nullopt, std::nullopt, "none");
  const Tensor gradient = check_output_like("grad", grad, sizes_of(y.size(0), y.size(1), spatial_of(y)));
  check_correction(correction, y, y.size(1));
  const Tensor out = empty_stage_output(y.size(0), y.size(1), spatial_of(y));
  stage_corrected(floats(gradient), input.data(), floats(correction), input.pixels(), input.channels(),
                  mutable_floats(out));
  return out;
}

}  // namespace dwsep
