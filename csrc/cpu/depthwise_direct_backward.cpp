#include "cpu/depthwise_direct_backward.h"

#include <algorithm>
#include <vector>

#include "cpu/depthwise_backward_tile.h"
#include "cpu/direct_rows.h"
#include "cpu/isa.h"
#include "cpu/layout.h"
#include "cpu/streaming.h"

namespace dwsep {
namespace {

// An item is a band of an image's input rows, and of as large a share of its output rows.
struct DirectPlan : BandPlan {
  std::vector<AxisResidue> residues;  // of columns

  DirectPlan(const KernelTable& kernels, const ConvProblem& of)
      : BandPlan(kernels, of, false), residues(axis_residues(width)) {
    constexpr int64_t kLeastRows = 4;
    bands = std::clamp<int64_t>(ceil_div(most_parts, std::max<int64_t>(1, of.batch)), 1,
                                std::max<int64_t>(1, height.input / kLeastRows));
    group = blocks;
    limit_parts(of.batch * height.input * width.input);
  }
};

class DirectBackward : BandGroup {
 public:
  // `sums` [block][taps, then bias][lane]: this group's begin at zero.
  DirectBackward(const DirectPlan& plan, int64_t first_block, const DepthwiseBackwardTensors& tensors, bool stream,
                 float* sums, float* memory)
      : BandGroup(plan, first_block),
        plan_(plan),
        tensors_(tensors),
        sums_(sums + first_block * plan.sums_of_block()),
        row_(memory) {
    job_.first_output = 0;
    job_.end_output = plan.width.output;
    job_.pixel_stride = plan.problem.channels;
    job_.block_stride = job_.out_block_stride = job_.gradient_block_stride = plan.lanes;
    job_.channels = channels();
    job_.stream = stream;
    std::fill_n(sums_, group_ * plan.sums_of_block(), 0.0f);
  }

  static int64_t floats(const DirectPlan& plan) { return plan.group * plan.lanes * plan.width.output; }

  void run(int64_t item, int64_t) {
    const int64_t image = item / plan_.bands;
    const Range inputs = plan_.band_of(plan_.height.input, item), outputs = plan_.band_of(plan_.height.output, item);
    for (int64_t row = inputs.begin; row < inputs.end; ++row) add_row(image, row, row + 1 < inputs.end);
    if (tensors_.bias_gradient == nullptr) return;
    for (int64_t row = outputs.begin; row < outputs.end; ++row) add_bias_gradient(gradient(image, row));
  }

 private:
  const DirectPlan& plan_;
  const DepthwiseBackwardTensors& tensors_;
  float* sums_;
  float* row_;
  DirectBackRow job_ = {};
  DirectRows rows_;

  int64_t at(int64_t image, const int64_t size[3], int64_t row) const {
    return (image * size[1] + row) * size[2] * plan_.problem.channels + channel();
  }
  const float* gradient(int64_t image, int64_t row) const {
    return static_cast<const float*>(tensors_.gradient) + at(image, plan_.problem.output, row);
  }

  // What an input row gives to both gradients; `more` where the one below it comes next.
  void add_row(int64_t image, int64_t row, bool more) {
    const ConvAxis &height = plan_.height, &width = plan_.width;
    const int64_t here = at(image, plan_.problem.input, row), pixel = plan_.problem.channels;
    const int64_t reached = row + height.pad_low;
    rows_.set_lines(plan_, row, [&](int64_t output) { return gradient(image, output); });
    const int64_t below = (reached + 1) / height.stride;
    const bool fresh = more && (reached + 1) % height.stride == 0 && below < height.output;
    rows_.for_columns(plan_, plan_.residues, block_, sums_, pixel, job_,
                      [&](DirectBackRow& job, int64_t column, int64_t, const AxisResidue& residue, int64_t i) {
                        job.x = static_cast<const float*>(tensors_.x) + here + column * pixel;
                        job.x_gradient = static_cast<float*>(tensors_.x_gradient) + here + column * pixel;
                        job.next[0] = more ? job.x + width.input * pixel : nullptr;
                        job.next[1] = fresh ? gradient(image, below) + (residue.from + i) * pixel : nullptr;
                        job.next_steps[0] = job.next_steps[1] = job.column_step;
                        plan_.table.direct_back_row(job);
                      });
  }

  void add_bias_gradient(const float* gradients) {
    const int64_t columns = plan_.width.output, block_floats = columns * plan_.lanes;
    plan_.table.gather_row({ElementType::kFloat32, plan_.problem.channels, 1, columns, channels(), block_floats},
                           gradients, row_);
    for (int64_t block = 0; block < group_; ++block) {
      plan_.table.sum_row(row_ + block * block_floats, columns,
                          sums_ + block * plan_.sums_of_block() + plan_.taps() * plan_.lanes);
    }
  }
};

}  // namespace

bool direct_backward_pays(const KernelTable& kernels, const ConvProblem& problem,
                          const DepthwiseBackwardTensors& tensors) {
  if (kernels.direct_back_row == nullptr || problem.element_type != ElementType::kFloat32) return false;
  if (tensors.x_gradient == nullptr || tensors.weight_gradient == nullptr || problem.multiplier != 1) return false;
  if (!has_two_axes(problem) || problem.input[1] == 1) return false;
  return has_direct_loops(problem.kernel[1] * problem.kernel[2], axis_residues(conv_axis(problem, 2)));
}

void depthwise_direct_backward(const ConvProblem& problem, const WeightSources& weights,
                               const DepthwiseBackwardTensors& tensors) {
  DirectPlan plan(kernels(), problem);
  const int64_t parts = plan.parts(), part_floats = plan.blocks * plan.sums_of_block();
  Layout layout;
  const int64_t packed_at = layout.add(plan.packed_floats());
  const int64_t sums_at = layout.add(parts * part_floats);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  plan.pack(weights, memory + packed_at);
  float* sums = memory + sums_at;
  const bool stream =
      streams(static_cast<const float*>(tensors.x_gradient), problem.batch * problem.input[1] * problem.input[2],
              problem.channels, problem.channels, kTrainingStreamBytes);
  run_parts(plan, DirectBackward::floats(plan), [&](int64_t part, int64_t first_block, float* panel) {
    return DirectBackward(plan, first_block, tensors, stream, sums + part * part_floats, panel);
  });
  write_weight_gradients(problem, plan.lanes, tensors, sums, parts);
}

}  // namespace dwsep
