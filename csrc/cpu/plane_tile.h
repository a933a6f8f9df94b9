// One tile of a convolution on planes: one image's box, one group of channel blocks.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "cpu/elements.h"
#include "cpu/plane_jobs.h"
#include "cpu/plane_plan.h"
#include "cpu/rows_ahead.h"
#include "cpu/stage_load.h"

namespace dwsep {

// The taps of a row's correlation, kept while the rows have the same ones inside the image.
struct TapList {
  std::array<int64_t, 6> key{-1, -1, -1, -1, -1, -1};
  std::vector<Tap> taps;
  int64_t run = 0;  // taps of the last kernel row, and of every other

  bool matches(const std::array<int64_t, 6>& other) const {
    for (std::size_t i = 0; i < key.size(); ++i) {
      if (key[i] != other[i]) return false;
    }
    return true;
  }
};

// Which tile: of an image, of the group of channel blocks from `first_block`.
struct TilePlace {
  int64_t image, tile, first_block;
};

class PlaneTile {
 public:
  // `x_planes` holds plan.group * plan.x_plane floats.
  PlaneTile(const PlanePlan& plan, float* x_planes) : plan_(plan), x_planes_(x_planes) {}

  void move_to(int64_t image, int64_t tile, int64_t first_block);

 protected:
  const PlanePlan& plan_;
  float* x_planes_;
  int64_t image_ = 0, block_ = 0;
  int64_t group_ = 0;  // channel blocks of this tile
  std::array<const AxisTile*, 3> part_ = {};

  int64_t channels() const;

  // Floats from the first pixel of a plane over `range` to (d, h, w), positions in the axes of the tensor.
  int64_t offset(Range AxisTile::* range, int64_t d, int64_t h, int64_t w) const {
    const Range &rd = part_[kDepth]->*range, &rh = part_[kHeight]->*range, &rw = part_[kWidth]->*range;
    return (((d - rd.begin) * rh.size() + (h - rh.begin)) * rw.size() + (w - rw.begin)) * plan_.lanes;
  }
  int64_t x_offset(int64_t d, int64_t h, int64_t w) const { return offset(&AxisTile::x, d, h, w); }

  // Fills one plane a channel block from a tensor; zeros in the columns beyond its width. Through `load`, if any.
  void gather(const void* source, const Strides& strides, int64_t first_channel, int64_t channel_step,
              Range AxisTile::* range, int64_t width, float* planes, int64_t plane_step,
              const StageLoad* load = nullptr) const;
  void gather_x(const void* x, const Strides& strides, const StageLoad* load = nullptr);

  // Asks for what gathering the tile at `next` will read, `channel_step` channels of the tensor for each of its own,
  // while this one is computed: ask_for(share of the work) says how much of that is about to be done.
  void expect(const TilePlace& next, const void* source, const Strides& strides, int64_t channel_step,
              Range AxisTile::* range, int64_t width);
  // `pixels`, all that ask_for will be told.
  void begin_asking(int64_t pixels) {
    ahead_per_pixel_ = ceil_div(ahead_.lines() * kAheadUnit, std::max<int64_t>(1, pixels));
  }
  bool asks() const { return ahead_per_pixel_ > 0; }
  void ask_for(int64_t pixels) {
    if (asks()) ahead_.ask((ahead_per_pixel_ * pixels + kAheadUnit - 1) / kAheadUnit);
  }
  void stop_asking() {
    ahead_.clear();
    ahead_per_pixel_ = 0;
  }

  // Calls f(first, count) for stretches of a row: what they compute is still in the first cache when it is written, and
  // something can be asked for in between. All but the last are whole vectors of pixels.
  template <class F>
  void in_stretches(int64_t pixels, const F& f) const {
    constexpr int64_t kStretch = 64;
    if (pixels <= kStretch) return f(0, pixels);
    const int64_t each = ceil_div(ceil_div(pixels, ceil_div(pixels, kStretch)), plan_.lanes) * plan_.lanes;
    for (int64_t first = 0; first < pixels; first += each) f(first, std::min(each, pixels - first));
  }

  // Calls f(block of the group, m, job) with the correlation of one row of outputs, columns [columns.begin, end), for
  // each channel block and each of its multiples; f sets the job's target and activation.
  template <class F>
  void correlate_outputs(int64_t od, int64_t oh, Range columns, const F& f) {
    const ConvAxis &ad = plan_.axes[kDepth], &ah = plan_.axes[kHeight], &aw = plan_.axes[kWidth];
    // Relative to the input under tap 0 of the first column, which may lie outside the plane.
    const int64_t base = x_offset(ad.position(od, 0), ah.position(oh, 0), aw.position(columns.begin, 0));
    list_outputs(od, oh, columns, base);
    for (int64_t b = 0; b < group_; ++b) {
      for (int64_t m = 0; m < plan_.problem.multiplier; ++m) {
        const int64_t part = (block_ + b) * plan_.problem.multiplier + m;
        CorrelateRow job = {};
        job.taps = outputs_.taps.data();
        job.tap_count = static_cast<int64_t>(outputs_.taps.size());
        if (aw.stride == 1 && aw.dilation == 1) job.run = part_[kWidth]->taps.size();
        job.run_step = plan_.lanes;
        job.source = x_planes_ + b * plan_.x_plane + base;
        job.weights = plan_.weights + part * plan_.taps * plan_.lanes;
        job.bias = plan_.bias + part * plan_.lanes;
        job.step = aw.stride * plan_.lanes;
        job.pixels = columns.size();
        f(b, m, job);
      }
    }
  }

 private:
  TapList outputs_;
  RowsAhead ahead_;
  static constexpr int64_t kAheadUnit = 1 << 16;
  int64_t ahead_per_pixel_ = 0;  // cache lines, in parts of kAheadUnit

  std::array<const AxisTile*, 3> parts_of(int64_t tile) const;

  void list_outputs(int64_t od, int64_t oh, Range columns, int64_t base);
};

}  // namespace dwsep
