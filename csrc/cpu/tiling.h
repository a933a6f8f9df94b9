// How an output is cut into tiles. An element's value never depends on the tile it falls in, so the cut may follow the
// caches and the number of threads.
#pragma once

#include <cstdint>

#include "cpu/conv_problem.h"

namespace dwsep {

class Tiling {
 public:
  // Tiles of about `pixels` output pixels: whole rows where a row is no longer than that, else equal parts of one row;
  // with `splits` parts of the `blocks` K blocks each. Bands of rows are a multiple of `shares` where there are as many
  // rows, so that threads get equal shares.
  Tiling(const ConvProblem& problem, int64_t pixels, int64_t blocks, int64_t splits, int64_t shares = 1);

  int64_t count() const { return bands_ * parts_ * splits_; }
  int64_t pixels() const { return rows_each_ * columns_each_; }  // of the largest tile
  Tile operator[](int64_t index) const;

 private:
  int64_t rows_, columns_, blocks_;
  int64_t rows_each_, columns_each_;
  int64_t bands_, parts_, splits_;
};

}  // namespace dwsep
