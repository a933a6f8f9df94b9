// How a pointwise stage goes through its pixels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "cpu/isa.h"
#include "cpu/layout.h"
#include "cpu/parallel.h"
#include "cpu/plane_jobs.h"
#include "cpu/plane_tiling.h"
#include "cpu/pointwise_stage_kernel.h"
#include "cpu/scratch.h"

namespace dwsep {

// What both directions need. Parts of the pixels have sums of their own, added in their order: their number depends on
// the shape alone, so that results do not depend on the threads.
class Pixels {
 public:
  int64_t count, parts, tile;
  bool whole_tiles;  // all but a part's last

  int64_t begin(int64_t part) const { return count * part / parts; }
  // Tiles that suit another stage of the same pixels, too.
  void join(const Pixels& other) {
    tile = std::min(tile, other.tile);
    whole_tiles = whole_tiles || other.whole_tiles;
  }

  // f(a tile's first pixel, that of the tile behind it, that of the one behind both) for the tiles of a part. Behind
  // its last is the next part's first: most often it is the same thread's.
  template <class F>
  void for_tiles(int64_t part, const F& f) const {
    const int64_t tiles = tiles_of(part);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t next = i + 1 < tiles ? at(part, i + 2) : part + 1 < parts ? at(part + 1, 1) : at(part, tiles);
      f(at(part, i), at(part, i + 1), next);
    }
  }

 private:
  int64_t tiles_of(int64_t part) const { return ceil_div(begin(part + 1) - begin(part), tile); }
  int64_t at(int64_t part, int64_t i) const {
    const int64_t size = begin(part + 1) - begin(part);
    return begin(part) + (whole_tiles ? std::min(size, i * tile) : size * i / std::max<int64_t>(1, tiles_of(part)));
  }
};

// The pixels [begin, end) of a tensor, if these are all of its channels.
inline MemoryRange rows(const float* tensor, int64_t channels, int64_t pixel_stride, int64_t begin, int64_t end) {
  if (pixel_stride != channels) end = begin;
  return {tensor + begin * pixel_stride, (end - begin) * pixel_stride * static_cast<int64_t>(sizeof(float))};
}

inline MemoryRange input_rows(const PointwiseStage& stage, int64_t begin, int64_t end) {
  return rows(stage.x, stage.channels, stage.x_stride, begin, end);
}

// Stages whose channels are those of the same tensors together, the first stage's first, take turns at every tile: so
// that its cache lines, of which some belong to two, are fetched once, and each stage asks for its share of whole ones.
struct Turn {
  int64_t index = 0, count = 1;
  const float *x = nullptr, *gradient = nullptr, *y = nullptr;  // the first stage's

  // This one's share of whole pixels [begin, end) of one of these tensors.
  MemoryRange rows(const float* tensor, int64_t pixel_stride, int64_t begin, int64_t end) const {
    const int64_t from = begin + (end - begin) * index / count, to = begin + (end - begin) * (index + 1) / count;
    return dwsep::rows(tensor, pixel_stride, pixel_stride, from, to);
  }
};

// One direction of all stages of a turn, each a `Direction` made of a stage, its results and its turn: of which `turn`
// says where the first stage's are.
template <class Direction, class Results>
void run_in_turns(std::span<const PointwiseStage> stages, std::span<const Results> results, Turn turn) {
  std::vector<Direction> all;
  all.reserve(stages.size());
  turn.count = static_cast<int64_t>(stages.size());
  turn.x = stages[0].x;
  for (std::size_t i = 0; i < stages.size(); ++i, ++turn.index) all.emplace_back(stages[i], results[i], turn);
  Pixels pixels = all[0].pixels();
  Layout layout;
  int64_t pixel_floats = 0;
  for (Direction& stage : all) {
    pixels.join(stage.pixels());
    pixel_floats = std::max(pixel_floats, stage.pixel_floats());
    stage.place(layout);
  }
  float* memory = scratch(Scratch::kPack, static_cast<std::size_t>(layout.size()));
  for (Direction& stage : all) stage.prepare(memory);
  parallel_parts(pixels.parts, [&](int64_t part_begin, int64_t part_end) {
    float* panels = scratch(Scratch::kPanel, static_cast<std::size_t>(pixels.tile * pixel_floats));
    for (int64_t part = part_begin; part < part_end; ++part) {
      for (const Direction& stage : all) stage.begin_part(part);
      pixels.for_tiles(part, [&](int64_t first, int64_t end, int64_t next_end) {
        for (const Direction& stage : all) stage.run_tile(part, first, end, next_end, panels);
      });
    }
    kernels().finish_streams();
  });
  for (const Direction& stage : all) stage.finish();
}

}  // namespace dwsep
