// Sums per channel, of something and of something else, in parts that are added in their order.
#pragma once

#include <algorithm>
#include <cstdint>

namespace dwsep {

// The first part's `count` floats become the sum of all parts', which are part_floats apart.
inline void add_parts(float* sums, int64_t parts, int64_t part_floats, int64_t count) {
  for (int64_t part = 1; part < parts; ++part) {
    const float* more = sums + part * part_floats;
    for (int64_t i = 0; i < count; ++i) sums[i] += more[i];
  }
}

// target[i] = the sum of every part's source[i], in their order.
inline void sum_of_parts(const float* source, int64_t parts, int64_t part_floats, int64_t count, float* target) {
  constexpr int64_t kLine = 16;  // a count known beforehand keeps a line in registers, and spares the call of a copy
  int64_t i = 0;
  for (; i + kLine <= count; i += kLine) {
    float sums[kLine];
    std::copy_n(source + i, kLine, sums);
    for (int64_t part = 1; part < parts; ++part) {
      const float* more = source + part * part_floats + i;
      for (int64_t lane = 0; lane < kLine; ++lane) sums[lane] += more[lane];
    }
    std::copy_n(sums, kLine, target + i);
  }
  for (; i < count; ++i) {
    float sum = source[i];
    for (int64_t part = 1; part < parts; ++part) sum += source[part * part_floats + i];
    target[i] = sum;
  }
}

// totals[row][channel] = the sum over parts of sums[part][row][channel], two rows each, `padded` channels long in
// `sums` and `row_length` in the totals.
inline void add_moments(const double* sums, int64_t parts, int64_t padded, int64_t channels, double* totals,
                        int64_t row_length) {
  for (int64_t row = 0; row < 2; ++row) {
    double* total = totals + row * row_length;
    std::fill_n(total, channels, 0.0);
    for (int64_t part = 0; part < parts; ++part) {
      const double* more = sums + (2 * part + row) * padded;
      for (int64_t channel = 0; channel < channels; ++channel) total[channel] += more[channel];
    }
  }
}

}  // namespace dwsep
