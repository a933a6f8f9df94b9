#include "cpu/workspace.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dwsep {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kPage = std::size_t{2} << 20;  // a huge one, of which a large buffer takes whole ones
constexpr std::size_t kMostKept = std::size_t{256} << 20;

struct Kept {
  void* memory;
  std::size_t bytes;
};

struct Store {
  std::mutex mutex;
  std::vector<Kept> kept;  // the one given back last is last
  std::size_t bytes = 0;
};

// Never destroyed: threads may outlive static objects.
Store& store() {
  static auto* store = new Store;
  return *store;
}

std::size_t alignment_of(std::size_t bytes) { return bytes < kPage ? kLine : kPage; }

std::size_t rounded(std::size_t bytes) {
  const std::size_t alignment = alignment_of(bytes);
  return std::max(alignment, (bytes + alignment - 1) / alignment * alignment);
}

float* allocate(std::size_t bytes) {
  void* memory = std::aligned_alloc(alignment_of(bytes), bytes);
  if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes >= kPage) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return static_cast<float*>(memory);
}

}  // namespace

Workspace::Workspace(std::size_t floats) : data_(nullptr), bytes_(rounded(floats * sizeof(float))) {
  {
    Store& all = store();
    const std::lock_guard lock(all.mutex);
    const auto fits = [&](const Kept& kept) { return kept.bytes >= bytes_; };
    const auto found = std::find_if(all.kept.rbegin(), all.kept.rend(), fits);
    if (found != all.kept.rend()) {
      data_ = static_cast<float*>(found->memory);
      bytes_ = found->bytes;
      all.bytes -= bytes_;
      all.kept.erase(std::next(found).base());
    }
  }
  if (data_ == nullptr) data_ = allocate(bytes_);
}

Workspace::~Workspace() {
  Store& all = store();
  const std::lock_guard lock(all.mutex);
  all.kept.push_back({data_, bytes_});
  all.bytes += bytes_;
  while (all.bytes > kMostKept) {
    std::free(all.kept.front().memory);
    all.bytes -= all.kept.front().bytes;
    all.kept.erase(all.kept.begin());
  }
}

}  // namespace dwsep
