// What the stage operators check and convert alike.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cpu/conv_problem.h"
#include "ops/arguments.h"

namespace dwsep {

// While it exists, products of this thread's stages may take operands rounded to bfloat16, if it says so.
class RoundedProducts {
 public:
  explicit RoundedProducts(bool allowed);
  ~RoundedProducts();
  RoundedProducts(const RoundedProducts&) = delete;
  RoundedProducts& operator=(const RoundedProducts&) = delete;
  static bool are_allowed();

 private:
  bool before_;
};

// A stage's input with its norm and activation, checked; float32 alone.
struct StageInput {
  Tensor x;  // channels last, dense, 4 or 5 axes
  std::optional<Tensor> scale, shift;
  Activation activation;
  bool rounds = RoundedProducts::are_allowed();

  StageInput(const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
             const std::string& activation);

  int64_t channels() const { return x.size(1); }
  int64_t pixels() const;
  const float* data() const { return static_cast<const float*>(x.const_data_ptr()); }
  const float* scale_or_null() const { return static_cast<const float*>(data_or_null(scale)); }
  const float* shift_or_null() const { return static_cast<const float*>(data_or_null(shift)); }
};

// A tensor that must lie as a stage's output does, channels last and dense.
Tensor check_output_like(const char* name, const Tensor& value, const std::vector<int64_t>& sizes);
// A norm's vector, if there is one.
void check_channels(const char* name, const std::optional<Tensor>& value, int64_t channels);
void check_correction(const std::optional<Tensor>& correction, const Tensor& x, int64_t channels);

// (N, C), as the means and the gates are.
Tensor check_per_image(const char* name, const Tensor& value, const Tensor& x);

// The gradient of a stage's output, the output itself (read with a correction alone) and the correction, checked.
struct OutputGradient {
  Tensor gradient, raw;
  std::optional<Tensor> correction;

  OutputGradient(const Tensor& grad, const Tensor& y, const std::optional<Tensor>& correction, const Tensor& x,
                 const std::vector<int64_t>& sizes);
  const float* correction_or_null() const { return static_cast<const float*>(data_or_null(correction)); }
};

// The gradients which a stage's backward returns, uninitialised, empty where none is wanted: outputs of an operator
// must not share memory, an empty one neither.
struct StageGradientTensors {
  bool wants_x, wants_affine, wants_weight, wants_bias;
  Tensor x, affine, weight, bias;

  StageGradientTensors(const Tensor& x, bool has_affine, const Tensor& weight, bool has_bias,
                       const std::vector<bool>& output_mask);
  float* x_or_null() const { return wants_x ? static_cast<float*>(x.mutable_data_ptr()) : nullptr; }
  double* affine_or_null() const { return wants_affine ? static_cast<double*>(affine.mutable_data_ptr()) : nullptr; }
  float* weight_or_null() const { return wants_weight ? static_cast<float*>(weight.mutable_data_ptr()) : nullptr; }
  float* bias_or_null() const { return wants_bias ? static_cast<float*>(bias.mutable_data_ptr()) : nullptr; }
};

// Uninitialised: (N, channels, *spatial) in channels last whatever its sizes.
Tensor empty_stage_output(int64_t batch, int64_t channels, const std::vector<int64_t>& spatial);
Tensor empty_sums(int64_t channels);  // float64 (2, channels)
Tensor empty_float(const std::vector<int64_t>& sizes);
std::vector<int64_t> spatial_of(const Tensor& x);
std::vector<int64_t> sizes_of(int64_t batch, int64_t channels, const std::vector<int64_t>& spatial);

inline float* mutable_floats(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }
inline const float* floats(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }

}  // namespace dwsep
