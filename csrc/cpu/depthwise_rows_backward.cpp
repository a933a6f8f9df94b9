#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/depthwise_direct_stage.h"
#include "cpu/depthwise_stage_rows.h"

namespace dwsep {
namespace {

class BackwardRows : StageRows {
 public:
  BackwardRows(const RowsPlan& plan, int64_t part, int64_t first_block, const StageBackward& stage,
               const DepthwiseBackwardTensors& tensors, const GradientRows* taker, bool stream, float* sums,
               double* affine_sums, float* memory)
      : StageRows(plan, part, first_block, stage, tensors, taker, stream, sums, affine_sums),
        inputs_(plan.inputs),
        gradients_(plan.gradients) {
    inputs_.place(memory, group_, plan.width.input, plan.height.input);
    float* behind = memory + plan.group * plan.inputs.block_floats();
    gradients_.place(behind, group_, plan.width.output, plan.height.output);
    result_ = behind + plan.group * plan.gradients.block_floats();
    zeros_ = result_ + result_floats(plan, taker);
    std::fill_n(zeros_, plan.inputs.row_floats(), 0.0f);
    of_taker_ = zeros_ + plan.inputs.row_floats();
  }

  static int64_t floats(const RowsPlan& plan, const StageBackward&, const GradientRows* taker) {
    return plan.group * (plan.inputs.block_floats() + plan.gradients.block_floats()) + result_floats(plan, taker) +
           plan.inputs.row_floats() + (taker != nullptr ? taker->memory_floats(result_pixels(plan)) : 0);
  }

  // One band of output rows: their share of the weight's gradient, and the gradients of the input rows which no later
  // output row reaches and this band's rows do. What comes behind is item `next`, if there is one.
  void run(int64_t item, int64_t next) {
    image_ = item / plan_.bands;
    const Range band = plan_.band(item);
    const ConvAxis& height = plan_.height;
    const bool last = band.end == height.output;
    next_input_ = 0;
    next_result_ = band.begin == 0 ? 0 : std::clamp<int64_t>(first_result(band.begin), 0, height.input);
    const int64_t results = last ? height.input : std::clamp<int64_t>(first_result(band.end), 0, height.input);
    if (wants_x()) fetch_gradients(std::max<int64_t>(0, band.begin - plan_.height.reach()), band.begin);
    for (int64_t row = band.begin; row < band.end; row += plan_.together) {
      const int64_t end = std::min(band.end, row + plan_.together);
      fetch_gradients(row, end);
      if (wants_weight()) fetch_inputs(row, end);
      if (end < band.end) {
        const int64_t stop = std::min(band.end, end + plan_.together);
        look_ahead(image_, {end, stop}, std::max(next_input_, height.position(end, 0)));
      } else {
        look_ahead_to(next);
      }
      if (wants_weight()) add_weight_gradient(row, end);
      if (tensors_.bias_gradient != nullptr) add_bias_gradient(row, end);
      const int64_t ready = end == band.end ? results : std::min(results, std::max<int64_t>(0, first_result(end)));
      while (wants_x() && next_result_ < ready) {
        const int64_t stop = std::min(ready, next_result_ + result_rows(plan_));
        compute_x_gradient(next_result_, stop);
        next_result_ = stop;
      }
      ahead_.ask(ahead_.lines());
    }
  }

 private:
  RowRing inputs_, gradients_;
  float* result_;  // gradients of inputs, before the stage
  float* zeros_;
  float* of_taker_;
  int64_t image_ = 0, next_input_ = 0, next_result_ = 0;
  std::vector<const float*> pointers_;
  std::vector<int64_t> steps_;
  Prefetch next_ = {};  // for the taker

  bool wants_x() const { return tensors_.x_gradient != nullptr || taker_ != nullptr; }
  bool wants_weight() const { return tensors_.weight_gradient != nullptr; }

  // The first input row that no output row before `row` is the last to reach.
  int64_t first_result(int64_t row) const { return row * plan_.height.stride - plan_.height.pad_low; }

  // Input rows whose gradients are computed at once.
  static int64_t result_rows(const RowsPlan& plan) { return plan.together * plan.height.stride; }
  static int64_t result_pixels(const RowsPlan& plan) { return result_rows(plan) * plan.width.input; }
  // Blocks whose gradients are computed before they go on: as many as stay in the first cache beside what they are made
  // of; one for somebody who takes them all, and wants each as soon as it is there.
  static int64_t result_blocks(const RowsPlan& plan, const GradientRows* taker) {
    const int64_t near = l1_cache_bytes() / 4 / static_cast<int64_t>(sizeof(float));
    if (taker != nullptr) return 1;
    return std::clamp<int64_t>(near / (result_pixels(plan) * plan.lanes), 1, plan.group);
  }
  // Those blocks', or all of them for somebody who takes them.
  static int64_t result_floats(const RowsPlan& plan, const GradientRows* taker) {
    return (taker != nullptr ? plan.group : result_blocks(plan, taker)) * result_pixels(plan) * plan.lanes;
  }
  // A pixel of all images.
  int64_t pixel_of(int64_t image, int64_t row) const { return (image * plan_.height.input + row) * plan_.width.input; }

  void fetch_gradients(int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      fetch(gradients_, gradient(), gradient_load_, image_, plan_.height.output, plan_.width.output, row);
    }
  }

  void fetch_inputs(int64_t begin, int64_t end) {
    const int64_t stop = plan_.height.under(begin, end).end;
    for (next_input_ = std::max(next_input_, plan_.height.position(begin, 0)); next_input_ < stop; ++next_input_) {
      fetch(inputs_, x(), input_load_, image_, plan_.height.input, plan_.width.input, next_input_);
    }
  }

  void look_ahead_to(int64_t item) {
    ahead_.clear();
    next_ = {};
    if (item >= plan_.items()) return;
    const Range band = plan_.band(item);
    const int64_t first = wants_x() ? std::max<int64_t>(0, band.begin - plan_.height.reach()) : band.begin;
    look_ahead(item / plan_.bands, {first, std::min(band.end, band.begin + plan_.together)},
               std::max<int64_t>(0, plan_.height.position(band.begin, 0)));
  }

  // Output rows [begin, end) of an image come next, and input rows from `input` on.
  void look_ahead(int64_t image, Range rows, int64_t input) {
    const auto [begin, end] = rows;
    ahead_.clear();
    next_ = {};
    const ConvAxis &height = plan_.height, &width = plan_.width;
    const int64_t stop = plan_.height.under(begin, end).end;
    if (taker_ != nullptr) {
      const auto size = static_cast<int64_t>(sizeof(float)), channels = plan_.problem.channels;
      const int64_t output = at(image, height.output, width.output, begin);
      const int64_t bytes = (end - begin) * width.output * channels * size;
      next_ = {{{gradient() + output, bytes},
                {gradient_load_.y + output, gradient_load_.y != nullptr ? bytes : 0},
                {x() + at(image, height.input, width.input, input),
                 std::max<int64_t>(0, stop - input) * width.input * channels * size}}};
      const int64_t first = std::clamp<int64_t>(first_result(begin), 0, height.input);
      const int64_t last = std::clamp<int64_t>(first_result(end), 0, height.input);
      taker_->expect(ahead_, pixel_of(image, first), (last - first) * width.input);
      return;
    }
    for (int64_t row = begin; row < end; ++row) {
      const int64_t from = at(image, height.output, width.output, row);
      expect(ahead_, gradient() + from, width.output);
      if (gradient_load_.y != nullptr) expect(ahead_, gradient_load_.y + from, width.output);
    }
    for (; wants_weight() && input < stop; ++input) {
      expect(ahead_, x() + at(image, height.input, width.input, input), width.input);
    }
  }

  void add_weight_gradient(int64_t begin, int64_t end) {
    const ConvAxis &height = plan_.height, &width = plan_.width;
    const int64_t lanes = plan_.lanes, left = width.position(0, 0) * lanes;
    // Of the first block, and from a block to the next.
    pointers_.clear();
    steps_.clear();
    const auto add = [&](const float* pointer, int64_t step) {
      pointers_.push_back(pointer);
      steps_.push_back(step);
    };
    for (int64_t row = begin; row < end; ++row) {
      add(gradients_.row(row, 0), gradients_.block_floats());
      for (int64_t h = 0; h < height.kernel; ++h) {
        const int64_t from = height.position(row, h);
        const bool inside = from >= 0 && from < height.input;
        const float* input = inside ? inputs_.row(from, 0) : zeros_ - plan_.inputs.columns().begin * lanes;
        add(input + left, inside ? inputs_.block_floats() : 0);
      }
    }
    for (int64_t block = 0; block < group_; ++block) {
      plan_.table.weight_gradient_rows(
          {pointers_.data(), end - begin, width.output, width.stride * lanes, width.dilation * lanes, height.kernel,
           width.kernel, sums_ + block * plan_.sums_of_block(), width.kernel * lanes, share(2 * group_)});
      for (std::size_t i = 0; i < pointers_.size(); ++i) pointers_[i] += steps_[i];
    }
  }

  void add_bias_gradient(int64_t begin, int64_t end) {
    for (int64_t block = 0; block < group_; ++block) {
      float* sums = sums_ + block * plan_.sums_of_block() + plan_.taps() * plan_.lanes;
      for (int64_t row = begin; row < end; ++row) {
        plan_.table.sum_row(gradients_.row(row, block), plan_.width.output, sums);
      }
    }
  }

  // Of input rows [begin, end): into the tensor, or, all blocks as planes, to whoever takes them.
  void compute_x_gradient(int64_t begin, int64_t end) {
    const int64_t lanes = plan_.lanes, columns = plan_.width.input, pixels = (end - begin) * columns;
    const int64_t offset = at(image_, plan_.height.input, columns, begin);
    if (is_plain() && taker_ == nullptr) {
      float* target = static_cast<float*>(tensors_.x_gradient) + offset;
      correlate({0, group_}, begin, end, target, plan_.pixel_stride, lanes, valid(group_ - 1), stream_);
      return;
    }
    const int64_t together = result_blocks(plan_, taker_);
    for (int64_t block = 0; block < group_; block += together) {
      const int64_t stop = std::min(group_, block + together);
      float* planes = taker_ != nullptr ? result_ + block * pixels * lanes : result_;
      correlate({block, stop}, begin, end, planes, lanes, pixels * lanes, lanes, false);
      if (is_plain()) continue;
      plan_.table.stage_gradient_row(back(planes, pixels * lanes, {block, stop}, offset, pixels));
    }
    if (taker_ != nullptr) taker_->take(part_, pixel_of(image_, begin), pixels, result_, of_taker_, next_);
  }

  // The same for some channel blocks, before the stage, `pixel` floats from a pixel to the next, `plane` from a block
  // to the next, and with the last one's channels.
  void correlate(Range blocks, int64_t begin, int64_t end, float* out, int64_t pixel, int64_t plane, int64_t valid,
                 bool stream) {
    PlaneConv job = {};
    job.out = out;
    job.out_pixel_stride = pixel;
    job.blocks = blocks.size();
    job.out_block_stride = plane;
    job.channels = valid;
    job.stream = stream;
    job.prefetch = share(ceil_div(2 * group_, blocks.size()));
    BandGroup::correlate(
        blocks.begin, {gradients_.block(0), gradients_.block_floats(), 0, 0, plan_.height.output, gradients_.offsets()},
        {begin, end}, job);
  }
};

}  // namespace

void depthwise_rows_backward(RowsPlan& plan, const WeightSources& weights, const StageBackward& stage,
                             const DepthwiseBackwardTensors& tensors, const GradientRows* taker) {
  if (direct_stage_pays(plan, tensors, taker)) return depthwise_direct_stage(plan, weights, stage, tensors, taker);
  run_stage_rows<BackwardRows>(plan, weights, stage, tensors, taker);
}

}  // namespace dwsep
