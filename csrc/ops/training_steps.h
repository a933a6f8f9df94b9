// What both directions of a training program read from its table.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "ops/stage_arguments.h"

namespace dwsep::training {

enum class Kind { kConv, kNorm, kOutput, kPool, kGate, kGated, kPart };
enum class Statistics { kBatchAndUpdate, kBatch, kRunning };

// One more convolution of a mixed one.
struct Part {
  int64_t weight, bias;
  std::vector<int64_t> stride, padding, dilation;
};

struct Step {
  Kind kind;
  std::size_t source, target;
  int64_t operand;
  int64_t weight, bias, norm_weight, norm_bias, norm;
  bool depthwise, dense;
  std::vector<int64_t> stride, padding, dilation;
  bool option;
  Statistics statistics;
  double eps, momentum;
  std::vector<Part> parts;  // behind the first, which is the step's own
  bool is_loaded = false;   // a product with a gate which the pointwise convolutions behind it make while loading

  bool has_norm() const { return norm >= 0; }
  std::size_t own_tensors() const { return kind == Kind::kNorm ? 0 : 1; }
  // How many tensors it makes: its own, then scale, shift, mean and 1 / sqrt(variance + eps).
  std::size_t made() const { return own_tensors() + (has_norm() ? 4 : 0); }
};

// A raw tensor and what whoever takes it applies.
struct Value {
  std::optional<Tensor> raw, scale, shift;
  std::string activation;
  const Step* product = nullptr;  // which whoever takes it makes while loading: there is no raw tensor

  bool is_plain() const { return !scale.has_value() && activation == "none"; }
};

// The table, checked: every number in it stands for something.
std::vector<Step> read_steps(const std::vector<int64_t>& table, std::size_t inputs, std::size_t values,
                             std::size_t parameters, const std::vector<double>& norms);

std::vector<Value> make_values(const std::vector<Tensor>& inputs, const std::vector<int64_t>& activations);

inline std::optional<Tensor> at(const std::vector<Tensor>& tensors, int64_t index) {
  if (index < 0) return std::nullopt;
  return tensors[static_cast<std::size_t>(index)];
}

// A mixed convolution as its operator takes it.
struct Mixed {
  std::vector<Tensor> weights;
  std::optional<Tensor> bias;
  std::vector<int64_t> stride, padding, dilation;
};
Mixed mixed_of(const Step& step, const std::vector<Tensor>& parameters);

const Tensor& raw_of(const Value& value);
int64_t pixels_of(const Tensor& x);
// (N, C, 1, 1) as (N, C), and back.
Tensor per_image(const Tensor& x);
Tensor with_pixel(const Tensor& x);
// The same of a linear layer's (N, C) and (K, C), which is a pointwise convolution of one pixel; others as they are.
inline Tensor with_axes(const Tensor& x) { return x.dim() == 2 ? with_pixel(x) : x; }

}  // namespace dwsep::training
