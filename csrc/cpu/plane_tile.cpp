#include "cpu/plane_tile.h"

#include <algorithm>

namespace dwsep {

std::array<const AxisTile*, 3> PlaneTile::parts_of(int64_t tile) const {
  const auto widths = static_cast<int64_t>(plan_.tiles[kWidth].size());
  const auto heights = static_cast<int64_t>(plan_.tiles[kHeight].size());
  return {&plan_.tiles[kDepth][static_cast<std::size_t>(tile / widths / heights)],
          &plan_.tiles[kHeight][static_cast<std::size_t>(tile / widths % heights)],
          &plan_.tiles[kWidth][static_cast<std::size_t>(tile % widths)]};
}

void PlaneTile::move_to(int64_t image, int64_t tile, int64_t first_block) {
  image_ = image;
  block_ = first_block;
  group_ = std::min(plan_.group, plan_.blocks - first_block);
  part_ = parts_of(tile);
  outputs_.key[0] = -1;
}

void PlaneTile::expect(const TilePlace& next, const void* source, const Strides& strides, int64_t channel_step,
                       Range AxisTile::* range, int64_t width) {
  // A short row of a contiguous tensor continues in the next, which the processor sees for itself.
  constexpr int64_t kShortRow = 256;
  const auto parts = parts_of(next.tile);
  const Range &rd = parts[kDepth]->*range, &rh = parts[kHeight]->*range, &rw = parts[kWidth]->*range;
  const int64_t begin = std::clamp<int64_t>(0, rw.begin, rw.end), pixels = std::clamp(width, begin, rw.end) - begin;
  const int64_t first = next.first_block * plan_.lanes, size = plan_.element_size;
  const int64_t channels = std::min(plan_.problem.channels - first, plan_.group * plan_.lanes) * channel_step;
  for (int64_t d = rd.begin; d < rd.end; ++d) {
    for (int64_t h = rh.begin; h < rh.end; ++h) {
      const int64_t at = next.image * strides.image + first * channel_step * strides.channel +
                         d * strides.axis[kDepth] + h * strides.axis[kHeight] + begin * strides.axis[kWidth];
      const void* row = advanced(source, at * size);
      if (strides.channel == 1) {
        ahead_.add(row, pixels, strides.axis[kWidth] * size, channels * size);
      } else if (strides.axis[kWidth] == 1 && pixels * size >= kShortRow) {
        ahead_.add(row, channels, strides.channel * size, pixels * size);
      }
    }
  }
}

int64_t PlaneTile::channels() const {
  return std::min(plan_.problem.channels - block_ * plan_.lanes, group_ * plan_.lanes);
}

void PlaneTile::gather(const void* source, const Strides& strides, int64_t first_channel, int64_t channel_step,
                       Range AxisTile::* range, int64_t width, float* planes, int64_t plane_step,
                       const StageLoad* load) const {
  const Range &rd = part_[kDepth]->*range, &rh = part_[kHeight]->*range, &rw = part_[kWidth]->*range;
  const int64_t lanes = plan_.lanes;
  const int64_t begin = std::clamp<int64_t>(0, rw.begin, rw.end), end = std::clamp(width, begin, rw.end);
  const RowCopy copy = {plan_.problem.element_type,
                        strides.axis[kWidth],
                        strides.channel * channel_step,
                        end - begin,
                        channels(),
                        plane_step};
  int64_t offset = 0;
  for (int64_t d = rd.begin; d < rd.end; ++d) {
    for (int64_t h = rh.begin; h < rh.end; ++h) {
      for (int64_t b = 0; b < group_; ++b) {
        float* row = planes + b * plane_step + offset;
        std::fill_n(row, (begin - rw.begin) * lanes, 0.0f);
        std::fill_n(row + (end - rw.begin) * lanes, (rw.end - end) * lanes, 0.0f);
      }
      const int64_t at = image_ * strides.image + first_channel * strides.channel + d * strides.axis[kDepth] +
                         h * strides.axis[kHeight] + begin * strides.axis[kWidth];
      if (end > begin && load != nullptr) {
        const StageRow row = {static_cast<const float*>(source),
                              nullptr,
                              nullptr,
                              nullptr,
                              Activation::kNone,
                              copy.pixel_stride,
                              copy.pixels,
                              copy.channels,
                              planes + offset + (begin - rw.begin) * lanes,
                              plane_step};
        load_stage_row(plan_.table, *load, at, first_channel, row);
      } else if (end > begin) {
        plan_.table.gather_row(copy, advanced(source, at * plan_.element_size),
                               planes + offset + (begin - rw.begin) * lanes);
      }
      offset += rw.size() * lanes;
    }
  }
}

void PlaneTile::gather_x(const void* x, const Strides& strides, const StageLoad* load) {
  gather(x, strides, block_ * plan_.lanes, 1, &AxisTile::x, plan_.axes[kWidth].input, x_planes_, plan_.x_plane, load);
}

void PlaneTile::list_outputs(int64_t od, int64_t oh, Range columns, int64_t base) {
  const ConvAxis &ad = plan_.axes[kDepth], &ah = plan_.axes[kHeight], &aw = plan_.axes[kWidth];
  const Range kd = ad.taps_inside(od), kh = ah.taps_inside(oh);
  const std::array<int64_t, 6> key = {kd.begin, kd.end, kh.begin, kh.end, columns.begin, columns.end};
  if (outputs_.matches(key)) return;
  outputs_.key = key;
  outputs_.taps.clear();
  const Range& kw = part_[kWidth]->taps;
  for (int64_t d = kd.begin; d < kd.end; ++d) {
    for (int64_t h = kh.begin; h < kh.end; ++h) {
      for (int64_t w = kw.begin; w < kw.end; ++w) {
        const int64_t source = x_offset(ad.position(od, d), ah.position(oh, h), aw.position(columns.begin, w));
        outputs_.taps.push_back({source - base, plan_.tap_index(d, h, w) * plan_.lanes});
      }
    }
  }
}

}  // namespace dwsep
