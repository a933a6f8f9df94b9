// Places in one piece of working memory.
#pragma once

#include <cstdint>

namespace dwsep {

// Elements one after the other, each rounded up to whole cache lines.
class Layout {
 public:
  int64_t add(int64_t floats) {
    const int64_t at = size_;
    size_ += (floats + 15) / 16 * 16;
    return at;
  }
  int64_t add_doubles(int64_t doubles) { return add(2 * doubles); }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
};

}  // namespace dwsep
