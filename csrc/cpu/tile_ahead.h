// What the tile behind one of a channels-last tensor will read, to be asked for while that one is computed.
#pragma once

#include <cstdint>

#include "cpu/conv_problem.h"
#include "cpu/plane_jobs.h"

namespace dwsep {

// Parts [begin, end) of `of`.
struct Share {
  int64_t begin = 0;
  int64_t end = 1;
  int64_t of = 1;
};

// A share of `count` elements from `first` on, as far as the tensor of `size` elements goes.
MemoryRange share_of(const void* tensor, int64_t first, int64_t count, int64_t size, int64_t element_size, Share share);

// A share of the input rows that the tile behind `tile` is the first to meet. Nothing where tiles are parts of rows,
// whose inputs are the same rows, and where there is an axis of depth.
MemoryRange input_rows_behind(const ConvProblem& problem, const Tile& tile, const void* x, int64_t element_size,
                              Share share);

}  // namespace dwsep
