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
    const MemoryRange range = next(lines);
    for (int64_t byte = 0; byte < range.bytes; byte += kLine) {
      __builtin_prefetch(static_cast<const char*>(range.first) + byte, 0, 2);
    }
    lines -= range.bytes / kLine;
  }
}

MemoryRange RowsAhead::next(int64_t lines) {
  Stretch& stretch = stretches_[current_];
  const int64_t bytes = std::min(lines, lines_of(stretch.bytes)) * kLine;
  const MemoryRange range = {stretch.at, bytes};
  stretch.at += bytes;
  stretch.bytes -= bytes;
  if (stretch.bytes <= 0) stretch.count = 0;
  return range;
}

Prefetch RowsAhead::take(int64_t lines) {
  Prefetch taken = {};
  for (MemoryRange& range : taken.ranges) {
    while (current_ < stretches_.size() && stretches_[current_].count == 0) ++current_;
    if (lines <= 0 || current_ == stretches_.size()) return taken;
    if (stretches_[current_].count > 1) {
      ask(lines);
      return taken;
    }
    range = next(lines);
    lines -= range.bytes / kLine;
  }
  return taken;
}

void RowsAhead::clear() {
  stretches_.clear();
  current_ = 0;
  lines_ = 0;
}

}  // namespace dwsep
