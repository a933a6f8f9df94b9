#include "ops/inference_program.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/packing.h"
#include "cpu/program.h"
#include "cpu/workspace.h"
#include "ops/arguments.h"
#include "ops/stage_arguments.h"

namespace dwsep {
namespace {

enum ValueColumn { kBatch, kChannels, kHeight, kWidth, kHome, kPlace, kFirstChannel, kValueColumns };
enum Home { kInput, kWorkspace, kOutput, kPart };
enum StepColumn {
  kKind,
  kFrom,
  kTo,
  kOperand,
  kActivation,
  kInnerActivation,
  kWeights,
  kInnerChannels,
  kKernel,
  kStride = kKernel + 2,
  kDilation = kStride + 2,
  kPadding = kDilation + 2,
  kExpansion = kPadding + 4,
  kExpansionActivation,
  kInputGate,
  kMeans,
  kBFloat16,
  kStepColumns
};

// No size of a tensor goes beyond: products of four stay far from overflow only where each is checked against the last.
constexpr int64_t kLargestCount = int64_t{1} << 48;

// A table of integers, one record a row.
class Table {
 public:
  Table(const char* name, const Tensor& tensor, int64_t columns) : tensor_(tensor), columns_(columns) {
    STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == torch::headeronly::ScalarType::Long &&
                        tensor.dim() == 2 && tensor.size(1) == columns && tensor.is_contiguous(),
                    name, " must be a contiguous int64 tensor of ", columns, " columns on the CPU");
  }

  int64_t size() const { return tensor_.size(0); }
  const int64_t* operator[](int64_t row) const {
    return static_cast<const int64_t*>(tensor_.const_data_ptr()) + row * columns_;
  }

 private:
  const Tensor& tensor_;
  int64_t columns_;
};

int64_t checked_count(const int64_t* sizes) {
  int64_t count = 1;
  for (int axis = 0; axis < 4; ++axis) {
    STD_TORCH_CHECK(sizes[axis] >= 1 && sizes[axis] <= kLargestCount / count, "a value's sizes are out of range");
    count *= sizes[axis];
  }
  return count;
}

bool same_sizes(const ProgramValue& a, const ProgramValue& b) {
  return a.batch == b.batch && a.channels == b.channels && a.height == b.height && a.width == b.width;
}

bool lies_channels_last(const Tensor& x) {
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  int64_t expected = 1;
  for (const int64_t axis : {1, 3, 2, 0}) {
    if (sizes[static_cast<std::size_t>(axis)] != 1 && strides[static_cast<std::size_t>(axis)] != expected) return false;
    expected *= sizes[static_cast<std::size_t>(axis)];
  }
  return true;
}

// Where a value's memory is, checked.
class Values {
 public:
  Values(const Table& table, const std::vector<Tensor>& inputs, const std::vector<int64_t>& output_sizes,
         float* workspace, int64_t workspace_floats) {
    STD_TORCH_CHECK(output_sizes.size() % 4 == 0, "output_sizes must have 4 entries an output");
    const auto outputs = static_cast<int64_t>(output_sizes.size() / 4);
    std::vector<std::optional<Tensor>> made(static_cast<std::size_t>(outputs));
    for (int64_t i = 0; i < table.size(); ++i) {
      const int64_t *row = table[i], count = checked_count(row), place = row[kPlace];
      ProgramValue value = {row[kBatch], row[kChannels], row[kHeight], row[kWidth], nullptr, row[kChannels]};
      switch (row[kHome]) {
        case kInput:
          STD_TORCH_CHECK(place >= 0 && place < static_cast<int64_t>(inputs.size()), "an input's number is too large");
          value.data = input(inputs[static_cast<std::size_t>(place)], value);
          value.is_input = true;
          break;
        case kWorkspace:
          STD_TORCH_CHECK(place >= 0 && place <= workspace_floats - count, "a value lies outside the workspace");
          value.data = workspace + place;
          break;
        case kOutput: {
          STD_TORCH_CHECK(place >= 0 && place < outputs && !made[static_cast<std::size_t>(place)].has_value(),
                          "outputs must be numbered from 0");
          for (int64_t axis = 0; axis < 4; ++axis) {
            STD_TORCH_CHECK(output_sizes[static_cast<std::size_t>(4 * place + axis)] == row[axis],
                            "output_sizes and values disagree");
          }
          auto& tensor = made[static_cast<std::size_t>(place)];
          tensor = empty_stage_output(value.batch, value.channels, {value.height, value.width});
          value.data = mutable_floats(*tensor);
          break;
        }
        case kPart: {
          STD_TORCH_CHECK(place >= 0 && place < i, "a part must follow the value that it is of");
          const ProgramValue& whole = values_[static_cast<std::size_t>(place)];
          const int64_t first = row[kFirstChannel];
          STD_TORCH_CHECK(first >= 0 && first <= whole.channels - value.channels && value.batch == whole.batch &&
                              value.height == whole.height && value.width == whole.width,
                          "a part lies outside the value that it is of");
          value.data = whole.data + first;
          value.pixel_stride = whole.pixel_stride;
          value.is_input = whole.is_input;
          break;
        }
        default:
          STD_TORCH_CHECK(false, "a value must be an input, in the workspace, an output or a part");
      }
      values_.push_back(value);
    }
    for (auto& tensor : made) {
      STD_TORCH_CHECK(tensor.has_value(), "output_sizes has more outputs than values");
      outputs_.push_back(*tensor);
    }
  }

  const ProgramValue& at(int64_t index) const {
    STD_TORCH_CHECK(index >= 0 && index < static_cast<int64_t>(values_.size()), "a step names no value: ", index);
    return values_[static_cast<std::size_t>(index)];
  }

  const std::vector<Tensor>& outputs() const { return outputs_; }

 private:
  static float* input(const Tensor& x, const ProgramValue& value) {
    STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == torch::headeronly::ScalarType::Float && x.dim() == 4 &&
                        x.size(0) == value.batch && x.size(1) == value.channels && x.size(2) == value.height &&
                        x.size(3) == value.width,
                    "an input has not the sizes that the program was made for");
    STD_TORCH_CHECK(lies_channels_last(x), "inputs must be dense in channels last");
    // Steps take values, whether they read or write them; check_step sees to it that inputs are only read.
    return const_cast<float*>(floats(x));
  }

  std::vector<ProgramValue> values_;
  std::vector<Tensor> outputs_;
};

// A convolution's output must be what its geometry makes of its input.
void set_problem(ProgramStep& step, const int64_t* row) {
  const ProgramValue &x = step.input, &out = step.output;
  const auto pair = [&](int column) { return std::vector<int64_t>{row[column], row[column + 1]}; };
  const bool dense = step.kind == StepKind::kDense, expands = row[kExpansion] >= 0;
  STD_TORCH_CHECK(!expands || !dense, "a dense convolution cannot follow an expansion");
  STD_TORCH_CHECK(!dense || (row[kKernel] >= 1 && row[kKernel + 1] >= 1 && row[kKernel] <= kLargestCount / x.channels &&
                             row[kKernel + 1] <= kLargestCount / x.channels / row[kKernel]),
                  "a kernel size is out of range");
  const int64_t inner = dense ? x.channels * row[kKernel] * row[kKernel + 1] : row[kInnerChannels];
  step.problem = make_problem(
      {x.batch, expands ? inner : x.channels, x.height, x.width}, ElementType::kFloat32, inner, pair(kKernel),
      pair(kStride), {row[kPadding], row[kPadding + 1], row[kPadding + 2], row[kPadding + 3]}, pair(kDilation));
  step.problem.out_channels = step.kind == StepKind::kDepthwise ? 0 : out.channels;
  const int64_t channels = step.kind == StepKind::kDepthwise ? inner : out.channels;
  const ProgramValue made = {x.batch, channels, step.problem.output[1], step.problem.output[2], nullptr};
  STD_TORCH_CHECK(same_sizes(made, out), "a convolution's output has not the sizes that it computes");
}

const float* weights_at(int64_t place, int64_t size, const Tensor& weights) {
  STD_TORCH_CHECK(place >= 0 && place % 16 == 0 && place <= weights.numel() - size,
                  "a step's weights lie outside the weights, or do not begin at a cache line");
  return floats(weights) + place;
}

// Of values which are some of the channels of others, only steps that know of distances between pixels.
void check_parts(const ProgramStep& step, const ProgramValue* operand) {
  const bool pointwise = step.kind == StepKind::kPointwise;
  const bool depthwise = step.kind == StepKind::kDepthwise && operand == nullptr && step.problem.multiplier == 1;
  STD_TORCH_CHECK(pointwise || depthwise ||
                      (step.input.is_dense() && step.output.is_dense() && (operand == nullptr || operand->is_dense())),
                  "only a pointwise step, or a depthwise one that adds nothing, takes or makes a part of a value");
  STD_TORCH_CHECK(!pointwise || operand == nullptr || operand->pixel_stride == step.output.pixel_stride,
                  "what a pointwise step adds must lie as its output does");
  STD_TORCH_CHECK(depthwise || step.means.data == nullptr, "only a depthwise step that adds nothing makes means");
}

ProgramStep read_step(const int64_t* row, const Values& values, const Tensor& weights) {
  STD_TORCH_CHECK(row[kKind] >= 0 && row[kKind] < static_cast<int64_t>(StepKind::kCount), "unknown step ", row[kKind]);
  for (const int column : {kActivation, kInnerActivation, kExpansionActivation}) {
    STD_TORCH_CHECK(row[column] >= 0 && row[column] <= static_cast<int64_t>(Activation::kHardsigmoid),
                    "unknown activation ", row[column]);
  }
  ProgramStep step = {};
  step.kind = static_cast<StepKind>(row[kKind]);
  step.pairs = takes_pairs(kernels(), row[kBFloat16] != 0);
  step.input = values.at(row[kFrom]);
  step.output = values.at(row[kTo]);
  step.activation = static_cast<Activation>(row[kActivation]);
  step.inner_activation = static_cast<Activation>(row[kInnerActivation]);
  STD_TORCH_CHECK(!step.output.is_input, "a step writes into an input");
  const ProgramValue &x = step.input, &out = step.output;
  const bool norm = step.kind == StepKind::kLayerNorm;
  const bool in_place = step.kind == StepKind::kGate || step.kind == StepKind::kActivation || norm;
  STD_TORCH_CHECK(in_place || x.data != out.data, "a step reads what it writes");
  const bool fits = step.kind == StepKind::kPointwise
                        ? x.batch == out.batch && x.height == out.height && x.width == out.width
                    : step.kind == StepKind::kPool
                        ? x.batch == out.batch && x.channels == out.channels && out.height == 1 && out.width == 1
                        : !in_place || same_sizes(x, out);
  STD_TORCH_CHECK(fits, "a step's output has not the sizes that it computes");
  STD_TORCH_CHECK(step.kind != StepKind::kGate || row[kOperand] >= 0, "a product needs its gate");
  STD_TORCH_CHECK(step.kind != StepKind::kPool || row[kOperand] < 0, "nothing can be added to means");
  STD_TORCH_CHECK(!norm || (row[kOperand] < 0 && step.activation == Activation::kNone),
                  "a layer norm is followed by nothing in its step");
  step.expansion_activation = static_cast<Activation>(row[kExpansionActivation]);
  const bool gated =
      std::max({step.activation, step.inner_activation, step.expansion_activation}) >= Activation::kSigmoid;
  STD_TORCH_CHECK(!gated || (step.kind == StepKind::kPointwise && step.inner_activation == Activation::kNone &&
                             step.expansion_activation == Activation::kNone),
                  "only a pointwise step ends in a gate's activation");
  if (row[kInputGate] >= 0) {
    step.gate = values.at(row[kInputGate]);
    STD_TORCH_CHECK(step.kind == StepKind::kPointwise, "only a pointwise step's input is gated");
    STD_TORCH_CHECK(same_sizes(step.gate, {x.batch, x.channels, 1, 1, nullptr}),
                    "a gate does not fit its step's input");
  }
  const ProgramValue* operand = row[kOperand] >= 0 ? &values.at(row[kOperand]) : nullptr;
  if (operand != nullptr) {
    ProgramValue wanted = out;
    if (step.kind == StepKind::kGate) wanted.height = wanted.width = 1;
    STD_TORCH_CHECK(same_sizes(*operand, wanted), "a step's second operand does not fit its output");
    step.operand = operand->data;
  }
  if (row[kMeans] >= 0) {
    step.means = values.at(row[kMeans]);
    STD_TORCH_CHECK(same_sizes(step.means, {out.batch, out.channels, 1, 1, nullptr}) && !step.means.is_input,
                    "means do not fit their step's output");
  }
  if (step.kind == StepKind::kDense || step.kind == StepKind::kDepthwise || step.kind == StepKind::kSeparable) {
    set_problem(step, row);
  }
  check_parts(step, operand);
  step.weights = weights_at(row[kWeights], program_weights_size(step), weights);
  if (row[kExpansion] >= 0) {
    STD_TORCH_CHECK(step.kind == StepKind::kDepthwise || step.kind == StepKind::kSeparable,
                    "only a depthwise or separable convolution follows an expansion");
    step.expansion = weights_at(row[kExpansion], program_expansion_size(step), weights);
  }
  return step;
}

}  // namespace

std::vector<Tensor> inference_program(const std::vector<Tensor>& inputs, const Tensor& weights, const Tensor& values,
                                      const Tensor& steps, const std::vector<int64_t>& output_sizes,
                                      int64_t workspace) {
  const Table value_table("values", values, kValueColumns), step_table("steps", steps, kStepColumns);
  STD_TORCH_CHECK(weights.is_cpu() && weights.scalar_type() == torch::headeronly::ScalarType::Float &&
                      weights.dim() == 1 && weights.is_contiguous(),
                  "weights must be a contiguous float32 vector on the CPU");
  STD_TORCH_CHECK(workspace >= 0 && workspace <= kLargestCount, "workspace must not be negative, got ", workspace);
  const Workspace memory(static_cast<std::size_t>(workspace));
  const Values all(value_table, inputs, output_sizes, memory.data(), workspace);
  std::vector<ProgramStep> program;
  program.reserve(static_cast<std::size_t>(step_table.size()));
  for (int64_t i = 0; i < step_table.size(); ++i) program.push_back(read_step(step_table[i], all, weights));
  run_program(program);
  return all.outputs();
}

}  // namespace dwsep
