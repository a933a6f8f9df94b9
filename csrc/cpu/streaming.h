// Stores past the caches: of a tensor so large that it has left them before anybody reads it.
#pragma once

#include <cstdint>

namespace dwsep {

// From this size in bytes on.
constexpr int64_t kStreamBytes = int64_t{4} << 20;

// Whether to store a channels-last tensor that way. Its pixels must be whole cache lines.
inline bool streams(const float* tensor, int64_t pixels, int64_t channels) {
  constexpr int64_t kLineFloats = 16;
  const auto size = static_cast<int64_t>(sizeof(float));
  return pixels * channels * size >= kStreamBytes && channels % kLineFloats == 0 &&
         reinterpret_cast<std::uintptr_t>(tensor) % (kLineFloats * sizeof(float)) == 0;
}

}  // namespace dwsep
