#include "cpu/depthwise_direct_stage.h"

#include <algorithm>

#include "cpu/cache_size.h"
#include "cpu/depthwise_stage_rows.h"
#include "cpu/direct_rows.h"

namespace dwsep {
namespace {

constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));

// How rows and channel blocks are taken together.
struct Batch {
  int64_t planes;        // inputs, the activation's derivatives where they are kept, gradients
  int64_t rows, blocks;  // whose planes lie in the first cache
  int64_t taken;         // rows that somebody takes together; else the same

  Batch(const RowsPlan& plan, const StageBackward& stage, const GradientRows* taker)
      : planes(keeps_slopes(stage.activation) ? 3 : 2) {
    constexpr int64_t kMostBlocks = 4, kMostRows = 8;
    const int64_t columns = plan.width.input;
    const int64_t near = l1_cache_bytes() / 2 / (planes * plan.lanes * kFloatBytes);
    rows = std::clamp<int64_t>(near / (columns * kMostBlocks), 1, std::min(kMostRows, plan.height.input));
    // Whole cache lines, which are read and written at once.
    const int64_t of_line = std::max<int64_t>(1, kLineFloats / plan.lanes);
    blocks = std::clamp<int64_t>(near / (columns * rows) / of_line * of_line, of_line, kMostBlocks);
    taken = rows;
    if (taker == nullptr) return;
    constexpr int64_t kTakenOutputs = 4;
    taken = ceil_div(std::min(kTakenOutputs * plan.height.stride, plan.height.input), rows) * rows;
  }

  int64_t near_floats(const RowsPlan& plan) const { return blocks * rows * plan.width.input * plan.lanes; }
};

int64_t ring_slots(const RowsPlan& plan, const Batch& batch) {
  const ConvAxis& height = plan.height;
  const int64_t reach = (height.kernel - 1) * height.dilation;
  return std::min(height.output, (reach + batch.rows - 1) / height.stride + 2);
}

class DirectStage : StageRows {
 public:
  DirectStage(const RowsPlan& plan, int64_t part, int64_t first_block, const StageBackward& stage,
              const DepthwiseBackwardTensors& tensors, const GradientRows* taker, bool stream, float* sums,
              double* affine_sums, float* memory)
      : StageRows(plan, part, first_block, stage, tensors, taker, stream, sums, affine_sums),
        batch_(plan, stage, taker),
        gradients_(ring_slots(plan, batch_), gradient_columns(plan.width), plan.lanes) {
    gradients_.place(memory, group_, plan.width.output, plan.height.output);
    values_ = memory + plan.group * gradients_.block_floats();
    const int64_t near = batch_.near_floats(plan);
    slopes_ = batch_.planes > 2 ? values_ + near : nullptr;
    results_ = values_ + (batch_.planes - 1) * near;
    of_taker_ = results_ + result_floats(plan, batch_, taker);
    job_.first_output = gradients_.columns().begin;
    job_.end_output = gradients_.columns().end;
    job_.pixel_stride = plan.lanes;
    job_.gradient_block_stride = gradients_.block_floats();
  }

  static int64_t floats(const RowsPlan& plan, const StageBackward& stage, const GradientRows* taker) {
    const Batch batch(plan, stage, taker);
    const RowRing ring(ring_slots(plan, batch), gradient_columns(plan.width), plan.lanes);
    const int64_t of_taker = taker != nullptr ? taker->memory_floats(batch.taken * plan.width.input) : 0;
    return plan.group * ring.block_floats() + (batch.planes - 1) * batch.near_floats(plan) +
           result_floats(plan, batch, taker) + of_taker;
  }

  // A band of input rows. What comes behind is item `next`, if there is one.
  void run(int64_t item, int64_t next) {
    image_ = item / plan_.bands;
    const Range band = plan_.band_of(plan_.height.input, item);
    next_gradient_ = first_gradient(band.begin);
    const bool more = next < plan_.items();
    for (int64_t begin = band.begin; begin < band.end; begin += batch_.taken) {
      const int64_t end = std::min(band.end, begin + batch_.taken);
      for (int64_t row = begin; row < end; row += batch_.rows) {
        const int64_t stop = std::min(end, row + batch_.rows);
        fetch_gradients(last_gradient(stop - 1) + 1);
        const bool last = stop == band.end;
        for (int64_t block = 0; block < group_; block += batch_.blocks) {
          compute(block, std::min(group_, block + batch_.blocks), {row, stop}, {begin, end}, !last || more);
        }
      }
      if (taker_ != nullptr) {
        const int64_t columns = plan_.width.input, first = (image_ * plan_.height.input + begin) * columns;
        taker_->take(part_, first, (end - begin) * columns, results_, of_taker_, {});
      }
    }
  }

 private:
  Batch batch_;
  RowRing gradients_;
  float* values_;   // [block][pixel][lane], inputs through norm and activation
  float* slopes_;   // the activation's derivatives there, or null
  float* results_;  // their gradients
  float* of_taker_;
  DirectBackRow job_ = {};
  DirectRows rows_;
  int64_t image_ = 0, next_gradient_ = 0;

  static int64_t result_floats(const RowsPlan& plan, const Batch& batch, const GradientRows* taker) {
    return taker != nullptr ? plan.group * batch.taken * plan.width.input * plan.lanes : batch.near_floats(plan);
  }
  // Output rows between which lie all that an input row meets.
  int64_t first_gradient(int64_t row) const {
    const ConvAxis& height = plan_.height;
    return std::max<int64_t>(0, ceil_div(row + height.pad_low - (height.kernel - 1) * height.dilation, height.stride));
  }
  int64_t last_gradient(int64_t row) const {
    return std::min(plan_.height.output - 1, (row + plan_.height.pad_low) / plan_.height.stride);
  }

  void fetch_gradients(int64_t end) {
    for (; next_gradient_ < end; ++next_gradient_) {
      fetch(gradients_, gradient(), gradient_load_, image_, plan_.height.output, plan_.width.output, next_gradient_);
    }
  }

  // The output row whose gradient an input row is the first to meet.
  int64_t newest_gradient(int64_t row) const { return (row + plan_.height.pad_low) / plan_.height.stride; }

  // Channel blocks [block, end) of the group, input rows `rows` of those which are taken together.
  void compute(int64_t block, int64_t end, Range rows, Range taken, bool more) {
    const int64_t lanes = plan_.lanes, columns = plan_.width.input, pixels = rows.size() * columns;
    const int64_t offset = at(image_, plan_.height.input, columns, rows.begin);
    StageRow load = {};
    load.x = x();
    load.pixel_stride = plan_.pixel_stride;
    load.pixels = pixels;
    load.channels = (end - block - 1) * lanes + valid(end - 1);
    load.plane = values_;
    load.block_stride = pixels * lanes;
    load.slopes = slopes_;
    load_stage_row(plan_.table, input_load_, offset + block * lanes, channel() + block * lanes, load);
    const int64_t out_block = (taker_ != nullptr ? taken.size() * columns : pixels) * lanes;
    float* out = results_;
    if (taker_ != nullptr) out += block * out_block + (rows.begin - taken.begin) * columns * lanes;
    job_.channels = (end - block) * lanes;
    job_.block_stride = pixels * lanes;
    job_.out_block_stride = out_block;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t place = (row - rows.begin) * columns * lanes;
      add_row(block, row, values_ + place, out + place, more);
    }
    if (is_plain() && taker_ != nullptr) return;
    const int64_t together = taker_ != nullptr ? 1 : end - block;
    for (int64_t b = block; b < end; b += together) {
      StageGradientRow job = back(out + (b - block) * out_block, out_block, {b, b + together}, offset, pixels);
      if (slopes_ != nullptr) job.slopes = slopes_ + (b - block) * pixels * lanes;
      job.slopes_block_stride = pixels * lanes;
      plan_.table.stage_gradient_row(job);
    }
  }

  // What an input row gives to both gradients.
  void add_row(int64_t block, int64_t row, const float* values, float* out, bool more) {
    const ConvAxis &height = plan_.height, &width = plan_.width;
    const int64_t lanes = plan_.lanes, pixel = plan_.pixel_stride;
    rows_.set_lines(plan_, row, [&](int64_t output) { return gradients_.row(output, block); });
    // In the order of memory, in which images follow each other.
    const int64_t coming = row + batch_.rows;
    const float* next_x = nullptr;
    int64_t next_gradient = -1;
    if (more) {
      next_x = x() + at(image_, height.input, width.input, coming) + block * lanes;
      if ((coming + height.pad_low) % height.stride == 0) {
        next_gradient = at(image_, height.output, width.output, newest_gradient(coming)) + block * lanes;
      }
    }
    float* sums = sums_ + block * plan_.sums_of_block();
    rows_.for_columns(plan_, plan_.width_residues, block_ + block, sums, lanes, job_,
                      [&](DirectBackRow& job, int64_t column, int64_t step, const AxisResidue& residue, int64_t i) {
                        job.x = values + column * lanes;
                        job.x_gradient = out + column * lanes;
                        job.next[0] = next_x != nullptr ? next_x + column * pixel : nullptr;
                        job.next_steps[0] = step * pixel;
                        const bool asks = next_gradient >= 0 && residue.first == 0;
                        const int64_t at = next_gradient + i * pixel;
                        job.next[1] = asks ? gradient() + at : nullptr;
                        job.next[2] = asks && gradient_load_.y != nullptr ? gradient_load_.y + at : nullptr;
                        job.next_steps[1] = job.next_steps[2] = residue.dilation * pixel;
                        plan_.table.direct_back_row(job);
                      });
  }
};

}  // namespace

bool direct_stage_pays(const RowsPlan& plan, const DepthwiseBackwardTensors& tensors, const GradientRows* taker) {
  if (plan.table.direct_back_row == nullptr || plan.height.input == 1) return false;
  if ((tensors.x_gradient == nullptr && taker == nullptr) || tensors.weight_gradient == nullptr) return false;
  if (tensors.bias_gradient != nullptr) return false;
  return has_direct_loops(plan.taps(), plan.width_residues);
}

void depthwise_direct_stage(RowsPlan& plan, const WeightSources& weights, const StageBackward& stage,
                            const DepthwiseBackwardTensors& tensors, const GradientRows* taker) {
  run_stage_rows<DirectStage>(plan, weights, stage, tensors, taker);
}

}  // namespace dwsep
