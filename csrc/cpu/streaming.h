// Stores past the caches: of a tensor so large that it has left them before anybody reads it.
#pragma once

#include <cstdint>

#include "cpu/plane_jobs.h"

namespace dwsep {

// From these sizes in bytes on. A training step keeps most of what it writes, so that the memory which a stage is given
// was last used a step ago, and an ordinary store would read it first; a forward alone is given the same few buffers
// again.
constexpr int64_t kTrainingStreamBytes = int64_t{512} << 10;
constexpr int64_t kForwardStreamBytes = int64_t{4} << 20;

// What the tensors of a pass may take together and still be in the last cache from one pass to the next, in bytes.
// Measured where each complex of cores has 32 MB of it: the system's own answer is of the whole machine's caches.
constexpr int64_t kCachedBytes = int64_t{24} << 20;

constexpr int64_t kLineFloats = 16;  // of a cache line

// Whether to store channels of a channels-last tensor that way, whose pixels have `pixel_stride` of them. They must be
// whole cache lines.
inline bool streams(const float* tensor, int64_t pixels, int64_t channels, int64_t pixel_stride, int64_t least_bytes) {
  const auto size = static_cast<int64_t>(sizeof(float));
  return pixels * pixel_stride * size >= least_bytes && channels % kLineFloats == 0 &&
         pixel_stride % kLineFloats == 0 &&
         reinterpret_cast<std::uintptr_t>(tensor) % (kLineFloats * sizeof(float)) == 0;
}

// The same of any type: only floats are stored that way.
inline bool streams(ElementType type, const void* tensor, int64_t pixels, int64_t channels, int64_t pixel_stride,
                    int64_t least_bytes) {
  return type == ElementType::kFloat32 &&
         streams(static_cast<const float*>(tensor), pixels, channels, pixel_stride, least_bytes);
}

// The same for a tensor which is written from planes: where its channels are not consecutive, rows must begin and end
// with cache lines, since a line of which parts are stored either way is written twice.
inline bool streams_from_planes(ElementType type, const void* tensor, const Strides& strides, int64_t pixels,
                                int64_t channels, int64_t least_bytes) {
  if (tensor == nullptr || type != ElementType::kFloat32) return false;
  if (strides.channel == 1) return streams(type, tensor, pixels, channels, strides.axis[2], least_bytes);
  const bool lines = strides.axis[1] % kLineFloats == 0 && strides.channel % kLineFloats == 0 &&
                     reinterpret_cast<std::uintptr_t>(tensor) % (kLineFloats * sizeof(float)) == 0;
  return lines && pixels * channels * static_cast<int64_t>(sizeof(float)) >= least_bytes;
}

}  // namespace dwsep
