#include "cpu/elementwise.h"

#include <algorithm>

#include "cpu/elements.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/plane_tile.h"

namespace dwsep {
namespace {

constexpr int64_t kChunk = 4096;  // elements, a multiple of every vector's lanes
constexpr int64_t kGrain = 16;    // chunks of a thread at least

// Calls f(first element, pixels of a vector each, whether the last is partial) on parts that fit into a buffer.
template <class F>
void by_chunks(int64_t count, const F& f) {
  parallel_for((count + kChunk - 1) / kChunk, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) f(chunk * kChunk, std::min(kChunk, count - chunk * kChunk));
  });
}

// A stretch of elements as a row of pixels of one vector each, and the elements behind the last whole vector.
void gather_flat(const KernelTable& table, ElementType type, const void* source, int64_t count, float* target) {
  const int64_t whole = count / table.lanes, rest = count % table.lanes;
  table.gather_row({type, table.lanes, 1, whole, table.lanes, 0}, source, target);
  const int64_t bytes = element_bytes(type);
  if (rest > 0) {
    table.gather_row({type, table.lanes, 1, 1, rest, 0}, advanced(source, whole * table.lanes * bytes),
                     target + whole * table.lanes);
  }
}

void scatter_flat(const KernelTable& table, ElementType type, const float* source, int64_t count, void* target) {
  const int64_t whole = count / table.lanes, rest = count % table.lanes;
  table.scatter_row({type, table.lanes, 1, whole, table.lanes, 0}, source, target);
  const int64_t bytes = element_bytes(type);
  if (rest > 0) {
    table.scatter_row({type, table.lanes, 1, 1, rest, 0}, source + whole * table.lanes,
                      advanced(target, whole * table.lanes * bytes));
  }
}

}  // namespace

void activation_gradient(Activation activation, ElementType type, const void* raw, const void* gradient, void* out,
                         int64_t count) {
  const KernelTable& table = kernels();
  by_chunks(count, [&](int64_t first, int64_t size) {
    alignas(64) float at[kChunk], values[kChunk];
    const int64_t offset = first * element_bytes(type);
    gather_flat(table, type, advanced(raw, offset), size, at);
    gather_flat(table, type, advanced(gradient, offset), size, values);
    table.activation_gradient_row(activation, at, values, (size + table.lanes - 1) / table.lanes);
    scatter_flat(table, type, values, size, advanced(out, offset));
  });
}

void add_in_place(ElementType type, void* target, const void* addend, int64_t count) {
  const KernelTable& table = kernels();
  by_chunks(count, [&](int64_t first, int64_t size) {
    alignas(64) float sum[kChunk], values[kChunk];
    const int64_t offset = first * element_bytes(type);
    gather_flat(table, type, advanced(target, offset), size, sum);
    gather_flat(table, type, advanced(addend, offset), size, values);
    for (int64_t i = 0; i < size; ++i) sum[i] += values[i];
    scatter_flat(table, type, sum, size, advanced(target, offset));
  });
}

}  // namespace dwsep
