#include <algorithm>

#include "cpu/depthwise_volumes.h"
#include "cpu/elements.h"
#include "cpu/streaming.h"

namespace dwsep {
namespace {

class ForwardVolumes : VolumeGroup {
 public:
  ForwardVolumes(const VolumePlan& plan, int64_t first_block, Activation activation, const void* x, void* y,
                 bool stream, float* memory)
      : VolumeGroup(plan, first_block),
        activation_(activation),
        x_(x),
        y_(y),
        stream_(stream),
        size_(element_bytes(plan.problem.element_type)),
        inputs_(plan.inputs) {
    inputs_.place(memory, group_, plan.width.input);
  }

  static int64_t floats(const VolumePlan& plan) { return plan.group * plan.inputs.block_floats(); }

  // What comes behind is item `next`, if there is one.
  void run(int64_t item, int64_t next) {
    image_ = item / plan_.bands;
    const Range band = plan_.band(item), rows = plan_.height.under(band.begin, band.end);
    int64_t held = 0;
    for (int64_t slice = 0; slice < plan_.depth.output; ++slice) {
      const Range under = plan_.depth.under(slice, slice + 1);
      for (held = std::max(held, under.begin); held < under.end; ++held) {
        fetch(inputs_, input(image_, held, rows.begin), rows.size(), plan_.width.input, held);
      }
      ahead_.clear();
      if (slice + 1 < plan_.depth.output) {
        look_ahead(image_, held, plan_.depth.under(slice + 1, slice + 2).end, rows);
      } else if (next < plan_.items()) {
        const Range after = plan_.band(next), first = plan_.depth.under(0, 1);
        look_ahead(next / plan_.bands, first.begin, first.end, plan_.height.under(after.begin, after.end));
      }
      compute(slice, band, rows);
    }
  }

 private:
  Activation activation_;
  const void* x_;
  void* y_;
  bool stream_;
  int64_t size_;  // of an element
  SliceRing inputs_;
  std::vector<PlaneSlice> slices_;

  const void* input(int64_t image, int64_t slice, int64_t row) const {
    return advanced(x_, input_at(image, slice, row) * size_);
  }

  void look_ahead(int64_t image, int64_t begin, int64_t end, Range rows) {
    for (int64_t slice = begin; slice < end; ++slice) {
      expect(input(image, slice, rows.begin), rows.size(), plan_.width.input);
    }
  }

  void compute(int64_t slice, Range band, Range rows) {
    const ConvAxis& depth = plan_.depth;
    const Range taps = depth.taps_inside(slice);
    slices_.clear();
    for (int64_t tap = taps.begin; tap < taps.end; ++tap) {
      slices_.push_back({inputs_.offset(depth.position(slice, tap)), tap * plan_.slice_weights() * plan_.lanes});
    }
    const PlaneRows inputs = {inputs_.block(0),
                              inputs_.block_floats(),
                              inputs_.row_floats(),
                              rows.begin,
                              rows.end,
                              nullptr,
                              slices_.data(),
                              static_cast<int64_t>(slices_.size())};
    void* out = advanced(y_, output_at(image_, slice, band.begin) * size_);
    for (int64_t block = 0; block < group_; ++block) {
      PlaneConv job = forward(block, inputs, band, activation_, out, plan_.problem.channels);
      job.stream = stream_;
      job.prefetch = share(group_);
      plan_.run(job);
    }
  }
};

}  // namespace

void depthwise_volumes_forward(VolumePlan& plan, const WeightSources& weights, Activation activation, const void* x,
                               void* y) {
  const ConvProblem& problem = plan.problem;
  plan.pack(weights, scratch(Scratch::kPack, static_cast<std::size_t>(plan.packed_floats())));
  const int64_t pixels = problem.batch * problem.output[0] * problem.output[1] * problem.output[2];
  const bool stream = streams(problem.element_type, y, pixels, problem.channels, problem.channels, kForwardStreamBytes);
  run_parts(plan, ForwardVolumes::floats(plan), [&](int64_t, int64_t first_block, float* memory) {
    return ForwardVolumes(plan, first_block, activation, x, y, stream, memory);
  });
}

}  // namespace dwsep
