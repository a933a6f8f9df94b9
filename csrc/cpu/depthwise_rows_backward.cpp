#include <algorithm>

#include "cpu/depthwise_backward_tile.h"
#include "cpu/depthwise_rows.h"
#include "cpu/layout.h"
#include "cpu/moments.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/streaming.h"

namespace dwsep {
namespace {

class BackwardRows : RowsGroup {
 public:
  // Added to: `sums` [block][taps, then bias][lane], `affine_sums` [2][padded channels] or null.
  BackwardRows(const RowsPlan& plan, int64_t first_block, const StageBackward& stage,
               const DepthwiseBackwardTensors& tensors, bool stream, float* sums, double* affine_sums, float* memory)
      : RowsGroup(plan, first_block),
        stage_(stage),
        tensors_(tensors),
        stream_(stream),
        sums_(sums),
        affine_sums_(affine_sums),
        input_load_{nullptr, stage.scale, stage.shift, stage.activation},
        gradient_load_{},
        inputs_(plan.inputs),
        gradients_(plan.gradients) {
    if (stage.correction != nullptr) {
      gradient_load_ = {stage.y, stage.correction, stage.correction + plan.pixel_stride, Activation::kNone};
    }
    inputs_.place(memory, group_);
    float* behind = memory + inputs_.floats(plan.group);
    gradients_.place(behind, group_);
    row_ = behind + gradients_.floats(plan.group);
    zeros_ = row_ + plan.width.input * plan.lanes;
    std::fill_n(zeros_, plan.inputs.block_floats(), 0.0f);
  }

  static int64_t floats(const RowsPlan& plan) {
    return plan.inputs.floats(plan.group) + plan.gradients.floats(plan.group) + plan.width.input * plan.lanes +
           plan.inputs.block_floats();
  }

  // One band of output rows: their share of the weight's gradient, and the gradients of the input rows which no later
  // output row reaches and this band's rows do.
  void run(int64_t item) {
    image_ = item / plan_.bands;
    const Range band = plan_.band(item);
    const ConvAxis& height = plan_.height;
    const bool last = band.end == height.output;
    next_input_ = 0;
    next_result_ = band.begin == 0 ? 0 : std::clamp<int64_t>(first_result(band.begin), 0, height.input);
    const int64_t results = last ? height.input : std::clamp<int64_t>(first_result(band.end), 0, height.input);
    // Rows before the band whose gradients reach the same inputs.
    const int64_t reach = (height.kernel - 1) * height.dilation / height.stride;
    const int64_t first = wants_x() ? std::max<int64_t>(0, band.begin - reach) : band.begin;
    for (int64_t row = first; row < band.end; ++row) {
      fetch(gradients_, gradient(), gradient_load_, image_, height.output, plan_.width.output, row);
      const bool own = row >= band.begin;
      if (own && wants_weight()) fetch_inputs(row);
      look_ahead(row + 1 < band.end, row + 1);
      const bool full = (row + 1 - band.begin) % plan_.together == 0 || row + 1 == band.end;
      if (own && wants_weight() && full) {
        const int64_t begin = row - (row - band.begin) % plan_.together;
        add_weight_gradient(begin, row + 1);
      }
      if (own && tensors_.bias_gradient != nullptr) add_bias_gradient(row);
      for (; wants_x() && next_result_ < results && floor_div(next_result_ + height.pad_low, height.stride) <= row;
           ++next_result_) {
        compute_x_gradient(next_result_);
      }
      ahead_.ask(ahead_.lines());
    }
    for (; wants_x() && next_result_ < results; ++next_result_) compute_x_gradient(next_result_);
  }

 private:
  const StageBackward& stage_;
  const DepthwiseBackwardTensors& tensors_;
  bool stream_;
  float* sums_;
  double* affine_sums_;
  StageLoad input_load_, gradient_load_;
  RowRing inputs_, gradients_;
  float* row_;
  float* zeros_;
  int64_t image_ = 0, next_input_ = 0, next_result_ = 0;
  std::vector<std::vector<Tap>> taps_;  // of each residue of the stride
  std::vector<int64_t> runs_;
  std::vector<const float*> pointers_;
  RowsAhead ahead_;

  bool wants_x() const { return tensors_.x_gradient != nullptr; }
  bool wants_weight() const { return tensors_.weight_gradient != nullptr; }
  const float* gradient() const { return static_cast<const float*>(tensors_.gradient); }
  const float* x() const { return static_cast<const float*>(tensors_.x); }
  int64_t sums_of_block() const { return (plan_.taps() + 1) * plan_.lanes; }

  // The first input row that no output row before `row` is the last to reach.
  int64_t first_result(int64_t row) const { return row * plan_.height.stride - plan_.height.pad_low; }
  int64_t inputs_end(int64_t row) const {
    return std::min(plan_.height.input, plan_.height.position(row, plan_.height.kernel - 1) + 1);
  }

  void fetch_inputs(int64_t row) {
    const int64_t stop = inputs_end(row);
    for (next_input_ = std::max(next_input_, plan_.height.position(row, 0)); next_input_ < stop; ++next_input_) {
      fetch(inputs_, x(), input_load_, image_, plan_.height.input, plan_.width.input, next_input_);
    }
  }

  void look_ahead(bool more, int64_t row) {
    ahead_.clear();
    if (!more) return;
    const ConvAxis &height = plan_.height, &width = plan_.width;
    const int64_t from = at(image_, height.output, width.output, row);
    expect(ahead_, gradient() + from, width.output);
    if (gradient_load_.y != nullptr) expect(ahead_, gradient_load_.y + from, width.output);
    const int64_t stop = inputs_end(row);
    for (int64_t input = std::max(next_input_, height.position(row, 0)); wants_weight() && input < stop; ++input) {
      expect(ahead_, x() + at(image_, height.input, width.input, input), width.input);
    }
  }
  // A share of what is to be asked for, of the work on one output row.
  void ask() { ahead_.ask(ceil_div(ahead_.lines(), 2 * group_)); }

  void add_weight_gradient(int64_t begin, int64_t end) {
    const ConvAxis &height = plan_.height, &width = plan_.width;
    const int64_t lanes = plan_.lanes, left = width.position(0, 0) * lanes;
    for (int64_t block = 0; block < group_; ++block) {
      ask();
      pointers_.clear();
      for (int64_t row = begin; row < end; ++row) {
        pointers_.push_back(gradients_.row(row, block));
        for (int64_t h = 0; h < height.kernel; ++h) {
          const int64_t from = height.position(row, h);
          const bool inside = from >= 0 && from < height.input;
          const float* input = inside ? inputs_.row(from, block) : zeros_ - plan_.inputs.columns().begin * lanes;
          pointers_.push_back(input + left);
        }
      }
      plan_.table.weight_gradient_rows({pointers_.data(), end - begin, width.output, width.stride * lanes,
                                        width.dilation * lanes, height.kernel, width.kernel,
                                        sums_ + (block_ + block) * sums_of_block(), width.kernel * lanes});
    }
  }

  void add_bias_gradient(int64_t row) {
    for (int64_t block = 0; block < group_; ++block) {
      plan_.table.sum_row(gradients_.row(row, block), plan_.width.output,
                          sums_ + (block_ + block) * sums_of_block() + plan_.taps() * plan_.lanes);
    }
  }

  // The taps that bring output rows to input row `row`, for columns `residue` and those a stride further each.
  void list_taps(int64_t row, int64_t residue) {
    const ConvAxis &height = plan_.height, &width = plan_.width;
    std::vector<Tap>& taps = taps_[static_cast<std::size_t>(residue)];
    int64_t& run = runs_[static_cast<std::size_t>(residue)];
    const float* origin = gradients_.row(0, 0);
    taps.clear();
    for (int64_t h = 0; h < height.kernel; ++h) {
      const int64_t above = row + height.pad_low - h * height.dilation;
      if (above < 0 || above % height.stride != 0 || above / height.stride >= height.output) continue;
      run = 0;
      // The last tap first: its operand is the first in memory.
      for (int64_t w = width.kernel - 1; w >= 0; --w) {
        const int64_t before = residue + width.pad_low - w * width.dilation;
        if (floor_div(before, width.stride) * width.stride != before) continue;
        ++run;
        taps.push_back({gradients_.row(above / height.stride, 0) - origin + before / width.stride * plan_.lanes,
                        (h * width.kernel + w) * plan_.lanes});
      }
    }
  }

  void compute_x_gradient(int64_t row) {
    const ConvAxis& width = plan_.width;
    const int64_t lanes = plan_.lanes, residues = std::min(width.stride, width.input);
    taps_.resize(static_cast<std::size_t>(residues));
    runs_.resize(static_cast<std::size_t>(residues));
    for (int64_t residue = 0; residue < residues; ++residue) list_taps(row, residue);
    const int64_t to = at(image_, plan_.height.input, width.input, row);
    const bool plain = stage_.scale == nullptr && stage_.activation == Activation::kNone;
    for (int64_t block = 0; block < group_; ++block) {
      ask();
      const int64_t first = channel() + block * lanes, valid = std::min(lanes, plan_.problem.channels - first);
      float* target = static_cast<float*>(tensors_.x_gradient) + to + block * lanes;
      const bool direct = plain && valid == lanes;
      float* out = direct ? target : row_;
      const int64_t pixel = direct ? plan_.pixel_stride : lanes;
      for (int64_t residue = 0; residue < residues; ++residue) {
        const auto index = static_cast<std::size_t>(residue);
        CorrelateRow job = {};
        job.taps = taps_[index].data();
        job.tap_count = static_cast<int64_t>(taps_[index].size());
        if (width.stride == 1 && width.dilation == 1) job.run = runs_[index];
        job.run_step = -lanes;
        job.source = gradients_.row(0, block);
        job.weights = plan_.weights + (block_ + block) * plan_.taps() * lanes;
        job.step = lanes;
        job.out = out + residue * pixel;
        job.out_stride = width.stride * pixel;
        job.stream = direct && stream_;
        job.pixels = ceil_div(width.input - residue, width.stride);
        plan_.table.correlate_row(job);
      }
      if (direct) continue;
      const bool affine = stage_.scale != nullptr;
      plan_.table.stage_gradient_row({row_, lanes, 0, x() + to + block * lanes, affine ? stage_.scale + first : nullptr,
                                      affine ? stage_.shift + first : nullptr, stage_.activation, plan_.pixel_stride,
                                      width.input, valid, target, stream_, affine ? affine_sums_ + first : nullptr,
                                      plan_.padded()});
    }
  }
};

}  // namespace

void depthwise_rows_backward(RowsPlan& plan, const WeightSources& weights, const StageBackward& stage,
                             const DepthwiseBackwardTensors& tensors) {
  const ConvProblem& problem = plan.problem;
  const int64_t parts = plan.parts(), groups = plan.groups();
  const int64_t part_floats = plan.blocks * (plan.taps() + 1) * plan.lanes;
  const bool affine = stage.affine_gradient != nullptr;
  Layout layout;
  const int64_t packed_at = layout.add(plan.packed_floats());
  const int64_t sums_at = layout.add(parts * part_floats);
  const int64_t affine_at = layout.add_doubles(affine ? parts * 2 * plan.padded() : 0);
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  plan.pack(weights, memory + packed_at);
  float* sums = memory + sums_at;
  std::fill_n(sums, parts * part_floats, 0.0f);
  auto* affine_sums = reinterpret_cast<double*>(memory + affine_at);
  if (affine) std::fill_n(affine_sums, parts * 2 * plan.padded(), 0.0);
  const auto* x_gradient = static_cast<const float*>(tensors.x_gradient);
  const int64_t pixels = problem.batch * problem.input[1] * problem.input[2];
  const bool stream = x_gradient != nullptr && streams(x_gradient, pixels, problem.channels, plan.pixel_stride);
  parallel_for(groups * parts, 1, [&](int64_t begin, int64_t end) {
    float* panel = scratch(Scratch::kPanel, static_cast<std::size_t>(BackwardRows::floats(plan)));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t part = unit / groups;
      BackwardRows rows(plan, unit % groups * plan.group, stage, tensors, stream, sums + part * part_floats,
                        affine ? affine_sums + part * 2 * plan.padded() : nullptr, panel);
      const Range items = plan.items_of(part);
      for (int64_t item = items.begin; item < items.end; ++item) rows.run(item);
    }
    plan.table.finish_streams();
  });
  if (tensors.weight_gradient != nullptr || tensors.bias_gradient != nullptr) {
    write_weight_gradients(problem, plan.lanes, tensors, sums, parts);
  }
  if (affine) {
    add_moments(affine_sums, parts, plan.padded(), problem.channels, stage.affine_gradient, plan.pixel_stride);
  }
}

}  // namespace dwsep
