#include "cpu/rows_ahead.h"

#include <algorithm>

namespace dwsep {
namespace {

constexpr int64_t kLine = 64;

int64_t lines_of(int64_t bytes) { return (bytes + kLine - 1) / kLine; }

}  // namespace

void RowsAhead::add(const void* first, int64_t count, int64_t stride, int64_t bytes) {
  if (count <= 0 || bytes <= 0) return;
  // What follows each other is one stretch.
  if (bytes == stride) {
    bytes *= count;
    count = 1;
  }
  stretches_.push_back({static_cast<const char*>(first), bytes, stride, count});
  lines_ += lines_of(bytes) * count;
}

void RowsAhead::ask(int64_t lines) {
  while (lines > 0 && current_ < stretches_.size()) {
    Stretch& stretch = stretches_[current_];
    if (stretch.count == 0) {
      ++current_;
      continue;
    }
    if (stretch.count > 1) {
      for (int64_t byte = 0; byte < stretch.bytes; byte += kLine, --lines) __builtin_prefetch(stretch.at + byte, 0, 2);
      stretch.at += stretch.stride;
      --stretch.count;
      continue;
    }
    const int64_t count = std::min(lines, lines_of(stretch.bytes));
    for (int64_t line = 0; line < count; ++line) __builtin_prefetch(stretch.at + line * kLine, 0, 2);
    stretch.at += count * kLine;
    stretch.bytes -= count * kLine;
    lines -= count;
    if (stretch.bytes <= 0) stretch.count = 0;
  }
}

Prefetch RowsAhead::take(int64_t lines) {
  Prefetch taken = {};
  for (MemoryRange& range : taken.ranges) {
    while (current_ < stretches_.size() && stretches_[current_].count == 0) ++current_;
    if (lines <= 0 || current_ == stretches_.size()) return taken;
    Stretch& stretch = stretches_[current_];
    if (stretch.count > 1) {
      ask(lines);
      return taken;
    }
    const int64_t count = std::min(lines, lines_of(stretch.bytes));
    range = {stretch.at, count * kLine};
    stretch.at += count * kLine;
    stretch.bytes -= count * kLine;
    lines -= count;
    if (stretch.bytes <= 0) stretch.count = 0;
  }
  return taken;
}

void RowsAhead::clear() {
  stretches_.clear();
  current_ = 0;
  lines_ = 0;
}

}  // namespace dwsep
