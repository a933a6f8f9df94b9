// Asks for rows of tensors while others are computed.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/plane_jobs.h"

namespace dwsep {

class RowsAhead {
 public:
  // `bytes` at each of `count` places, which are `stride` bytes apart.
  void add(const void* first, int64_t count, int64_t stride, int64_t bytes);
  // The next `lines` cache lines or so.
  void ask(int64_t lines);
  // The same, but what of them follows each other is left to the caller.
  Prefetch take(int64_t lines);
  int64_t lines() const { return lines_; }
  void clear();

 private:
  struct Stretch {
    const char* at;
    int64_t bytes, stride, count;
  };
  // The next `lines` of the current stretch, which is one piece.
  MemoryRange next(int64_t lines);

  std::vector<Stretch> stretches_;
  std::size_t current_ = 0;
  int64_t lines_ = 0;  // of all that was added
};

}  // namespace dwsep
