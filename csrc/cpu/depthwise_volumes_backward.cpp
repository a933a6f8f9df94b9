#include <algorithm>

#include "cpu/depthwise_backward_tile.h"
#include "cpu/depthwise_volumes.h"
#include "cpu/layout.h"
#include "cpu/streaming.h"

namespace dwsep {
namespace {

// The first input position that no output before `out` is the last to reach.
int64_t first_result(const ConvAxis& axis, int64_t out) {
  return out == axis.output ? axis.input : std::clamp<int64_t>(axis.position(out, 0), 0, axis.input);
}

class BackwardVolumes : VolumeGroup {
 public:
  // `sums` [block][taps, then bias][lane]: this group's begin at zero.
  BackwardVolumes(const VolumePlan& plan, int64_t first_block, const DepthwiseBackwardTensors& tensors, bool stream,
                  float* sums, float* memory)
      : VolumeGroup(plan, first_block),
        tensors_(tensors),
        stream_(stream),
        sums_(sums + first_block * plan_.sums_of_block()),
        inputs_(plan.inputs),
        gradients_(plan.gradients) {
    inputs_.place(memory, group_, plan.width.input);
    gradients_.place(memory + plan.group * plan.inputs.block_floats(), group_, plan.width.output);
    zeros_ = memory + plan.group * (plan.inputs.block_floats() + plan.gradients.block_floats());
    std::fill_n(zeros_, plan.inputs.row_floats(), 0.0f);
    std::fill_n(sums_, group_ * plan_.sums_of_block(), 0.0f);
  }

  static int64_t floats(const VolumePlan& plan) {
    return plan.group * (plan.inputs.block_floats() + plan.gradients.block_floats()) + plan.inputs.row_floats();
  }

  // A band of output rows: their share of the weight's gradient, and the gradients of the input rows which no later
  // row reaches and this band's rows do. What comes behind is item `next`, if there is one.
  void run(int64_t item, int64_t next) {
    const ConvAxis& depth = plan_.depth;
    set(item);
    int64_t next_input = 0, next_result = 0;
    for (int64_t slice = 0; slice < depth.output; ++slice) {
      fetch(gradients_, gradient() + output_at(image_, slice, reached_.begin), reached_.size(), plan_.width.output,
            slice);
      const Range under = depth.under(slice, slice + 1);
      if (wants_weight()) {
        for (next_input = std::max(next_input, under.begin); next_input < under.end; ++next_input) {
          fetch(inputs_, x() + input_at(image_, next_input, under_.begin), under_.size(), plan_.width.input,
                next_input);
        }
      }
      ahead_.clear();
      if (slice + 1 < depth.output) {
        look_ahead(slice + 1, {next_input, depth.under(slice + 1, slice + 2).end});
      } else if (next < plan_.items()) {
        set(next);
        look_ahead(0, depth.under(0, 1));
        set(item);
      }
      if (wants_weight()) add_weight_gradient(slice);
      if (tensors_.bias_gradient != nullptr) add_bias_gradient(slice);
      const int64_t ready = wants_x() ? first_result(depth, slice + 1) : 0;
      for (; next_result < ready; ++next_result) compute_x_gradient(next_result);
      ahead_.ask(ahead_.lines());
    }
  }

 private:
  const DepthwiseBackwardTensors& tensors_;
  bool stream_;
  float* sums_;
  SliceRing inputs_, gradients_;
  float* zeros_;
  // Of the band: its output rows, the input rows under them, those whose gradients it computes, and the output rows
  // that reach these.
  Range band_ = {0, 0}, under_ = {0, 0}, results_ = {0, 0}, reached_ = {0, 0};
  std::vector<const float*> pointers_;
  std::vector<PlaneSlice> slices_;

  bool wants_x() const { return tensors_.x_gradient != nullptr; }
  bool wants_weight() const { return tensors_.weight_gradient != nullptr; }
  const float* gradient() const { return static_cast<const float*>(tensors_.gradient); }
  const float* x() const { return static_cast<const float*>(tensors_.x); }

  void set(int64_t item) {
    const ConvAxis& height = plan_.height;
    image_ = item / plan_.bands;
    band_ = plan_.band(item);
    under_ = height.under(band_.begin, band_.end);
    results_ = {band_.begin == 0 ? 0 : first_result(height, band_.begin), first_result(height, band_.end)};
    reached_ = {wants_x() ? std::max<int64_t>(0, band_.begin - height.reach()) : band_.begin, band_.end};
  }

  void look_ahead(int64_t slice, Range inputs) {
    expect(gradient() + output_at(image_, slice, reached_.begin), reached_.size(), plan_.width.output);
    for (int64_t input = inputs.begin; wants_weight() && input < inputs.end; ++input) {
      expect(x() + input_at(image_, input, under_.begin), under_.size(), plan_.width.input);
    }
  }

  // A block's row of the gradient's slice.
  const float* gradient_row(int64_t block, int64_t slice, int64_t row) const {
    return gradients_.block(block) + gradients_.offset(slice) + (row - reached_.begin) * gradients_.row_floats();
  }

  void add_weight_gradient(int64_t slice) {
    const ConvAxis &depth = plan_.depth, &height = plan_.height, &width = plan_.width;
    const int64_t lanes = plan_.lanes, left = width.position(0, 0) * lanes;
    const Range taps = depth.taps_inside(slice);
    for (int64_t block = 0; block < group_; ++block) {
      pointers_.clear();
      for (int64_t row = band_.begin; row < band_.end; ++row) {
        pointers_.push_back(gradient_row(block, slice, row));
        for (int64_t tap = taps.begin; tap < taps.end; ++tap) {
          const float* input = inputs_.block(block) + inputs_.offset(depth.position(slice, tap));
          for (int64_t h = 0; h < height.kernel; ++h) {
            const int64_t from = height.position(row, h);
            const bool inside = from >= 0 && from < height.input;
            pointers_.push_back((inside ? input + (from - under_.begin) * inputs_.row_floats()
                                        : zeros_ - inputs_.columns().begin * lanes) +
                                left);
          }
        }
      }
      plan_.table.weight_gradient_rows({pointers_.data(), band_.size(), width.output, width.stride * lanes,
                                        width.dilation * lanes, taps.size() * height.kernel, width.kernel,
                                        sums_ + block * plan_.sums_of_block() + taps.begin * plan_.slice_taps() * lanes,
                                        width.kernel * lanes, share(2 * group_)});
    }
  }

  void add_bias_gradient(int64_t slice) {
    for (int64_t block = 0; block < group_; ++block) {
      float* sums = sums_ + block * plan_.sums_of_block() + plan_.taps() * plan_.lanes;
      for (int64_t row = band_.begin; row < band_.end; ++row) {
        plan_.table.sum_row(gradient_row(block, slice, row), plan_.width.output, sums);
      }
    }
  }

  void compute_x_gradient(int64_t slice) {
    const ConvAxis& depth = plan_.depth;
    slices_.clear();
    for (int64_t tap = depth.kernel - 1; tap >= 0; --tap) {
      const int64_t from = slice + depth.pad_low - tap * depth.dilation;
      if (from < 0 || from % depth.stride != 0 || from / depth.stride >= depth.output) continue;
      slices_.push_back({gradients_.offset(from / depth.stride), tap * plan_.slice_taps() * plan_.lanes});
    }
    auto* target = static_cast<float*>(tensors_.x_gradient) + input_at(image_, slice, results_.begin);
    const PlaneRows gradients = {gradients_.block(0),
                                 gradients_.block_floats(),
                                 gradients_.row_floats(),
                                 reached_.begin,
                                 reached_.end,
                                 nullptr,
                                 slices_.data(),
                                 static_cast<int64_t>(slices_.size())};
    for (int64_t block = 0; block < group_; ++block) {
      PlaneConv job = {};
      job.out = target + block * plan_.lanes;
      job.out_pixel_stride = plan_.problem.channels;
      job.channels = valid(block);
      job.stream = stream_;
      job.prefetch = share(2 * group_);
      correlate(block, gradients, results_, job);
    }
  }
};

}  // namespace

void depthwise_volumes_backward(VolumePlan& plan, const WeightSources& weights,
                                const DepthwiseBackwardTensors& tensors) {
  const ConvProblem& problem = plan.problem;
  const int64_t parts = plan.parts(), part_floats = plan.blocks * plan.sums_of_block();
  Layout layout;
  const int64_t packed_at = layout.add(plan.packed_floats()), sums_at = layout.add(parts * part_floats);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  plan.pack(weights, memory + packed_at);
  float* sums = memory + sums_at;
  const auto* x_gradient = static_cast<const float*>(tensors.x_gradient);
  const int64_t pixels = problem.batch * problem.input[0] * problem.input[1] * problem.input[2];
  const bool stream =
      x_gradient != nullptr && streams(x_gradient, pixels, problem.channels, problem.channels, kTrainingStreamBytes);
  run_parts(plan, BackwardVolumes::floats(plan), [&](int64_t part, int64_t first_block, float* panel) {
    return BackwardVolumes(plan, first_block, tensors, stream, sums + part * part_floats, panel);
  });
  if (tensors.weight_gradient != nullptr || tensors.bias_gradient != nullptr) {
    write_weight_gradients(problem, plan.lanes, tensors, sums, parts);
  }
}

}  // namespace dwsep
