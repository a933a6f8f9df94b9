#include "cpu/tiling.h"

#include <algorithm>

namespace dwsep {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Tiling::Tiling(const ConvProblem& problem, int64_t pixels, int64_t blocks, int64_t splits, int64_t shares)
    : rows_(problem.batch * problem.output[0] * problem.output[1]),
      columns_(problem.output[2]),
      blocks_(blocks),
      splits_(std::clamp<int64_t>(splits, 1, std::max<int64_t>(1, blocks))) {
  pixels = std::max<int64_t>(1, pixels);
  if (columns_ <= pixels) {
    parts_ = 1;
    columns_each_ = columns_;
    bands_ = ceil_div(rows_, std::max<int64_t>(1, pixels / columns_));
    if (bands_ > 1) bands_ = std::min(ceil_div(bands_, shares) * shares, rows_);
    rows_each_ = bands_ == 0 ? 0 : ceil_div(rows_, bands_);
  } else {
    parts_ = ceil_div(columns_, pixels);
    columns_each_ = ceil_div(columns_, parts_);
    parts_ = ceil_div(columns_, columns_each_);
    bands_ = rows_;
    rows_each_ = 1;
  }
}

Tile Tiling::operator[](int64_t index) const {
  // Neighbouring indices share the input rows, so that a thread's consecutive tiles find them in its cache.
  const int64_t split = index % splits_;
  const int64_t part = index / splits_ % parts_;
  const int64_t band = index / splits_ / parts_;
  return {
      rows_ * band / bands_,     rows_ * (band + 1) / bands_,
      part * columns_each_,      std::min(columns_, (part + 1) * columns_each_),
      split * blocks_ / splits_, (split + 1) * blocks_ / splits_,
  };
}

}  // namespace dwsep
