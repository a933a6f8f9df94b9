// How images are cut into a few rows each, in parts that have sums of their own: all of it depends on the shape alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/cache_size.h"
#include "cpu/plane_jobs.h"
#include "cpu/plane_tiling.h"

namespace dwsep {

struct RowUnits {
  int64_t images, rows;
  int64_t of_image = 1;
  int64_t parts = 1;

  // `floats_of(n)`: what n rows take in the cache.
  template <class F>
  RowUnits(int64_t images_of, int64_t rows_of, int64_t most_parts, const F& floats_of)
      : images(images_of), rows(rows_of) {
    constexpr int64_t kMostTogether = 8;
    const int64_t fit = l2_cache_bytes() / 4 / static_cast<int64_t>(sizeof(float));
    int64_t together = std::clamp<int64_t>(rows, 1, kMostTogether);
    while (together > 1 && floats_of(together) > fit) --together;
    // Some for every thread, of small batches.
    constexpr int64_t kLeastUnits = 8;
    while (together > 2 && images * ceil_div(rows, together) < kLeastUnits) --together;
    of_image = std::max<int64_t>(1, ceil_div(rows, together));
    parts = std::clamp<int64_t>(count(), 1, most_parts);
  }

  int64_t count() const { return images * of_image; }
  int64_t most_rows() const { return ceil_div(rows, of_image); }
  Range units_of(int64_t part) const { return {count() * part / parts, count() * (part + 1) / parts}; }
  int64_t image_of(int64_t unit) const { return unit / of_image; }
  Range rows_of(int64_t unit) const {
    const int64_t i = unit % of_image;
    return {rows * i / of_image, rows * (i + 1) / of_image};
  }
};

// Share `index` of `count` of what is to be asked for.
inline Prefetch share_of(const Prefetch& all, int64_t index, int64_t count) {
  Prefetch share = {};
  for (int i = 0; i < 3; ++i) {
    const MemoryRange& range = all.ranges[i];
    const int64_t from = range.bytes * index / count / 64 * 64;
    share.ranges[i] = {static_cast<const char*>(range.first) + from,
                       range.bytes * (index + 1) / count / 64 * 64 - from};
  }
  return share;
}

}  // namespace dwsep
