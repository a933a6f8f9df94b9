#include "cpu/tile_ahead.h"

#include <algorithm>

#include "cpu/plane_tiling.h"

namespace dwsep {

MemoryRange share_of(const void* tensor, int64_t first, int64_t count, int64_t size, int64_t element_size,
                     Share share) {
  const int64_t from = first + count * share.begin / share.of;
  const int64_t to = std::min(first + count * share.end / share.of, size);
  return {static_cast<const char*>(tensor) + from * element_size, std::max<int64_t>(0, to - from) * element_size};
}

MemoryRange input_rows_behind(const ConvProblem& problem, const Tile& tile, const void* x, int64_t element_size,
                              Share share) {
  if (tile.column_end != problem.output[2] || tile.row_end == tile.row_begin || problem.input[0] != 1) return {};
  const ConvAxis height = conv_axis(problem, 1);
  const int64_t last = tile.row_end - 1, line = problem.input[2] * problem.channels;
  const int64_t met = height.position(last % height.output, height.kernel - 1) + 1;
  const int64_t row = last / height.output * height.input + std::clamp<int64_t>(met, 0, height.input);
  const int64_t rows = (tile.row_end - tile.row_begin) * height.stride;
  return share_of(x, row * line, rows * line, problem.batch * height.input * line, element_size, share);
}

}  // namespace dwsep
