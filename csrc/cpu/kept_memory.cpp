#include "cpu/kept_memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace dwsep {
namespace {

constexpr std::size_t kPage = std::size_t{2} << 20;    // a huge one
constexpr std::size_t kPiece = std::size_t{32} << 20;  // what the system is asked for at least
constexpr std::size_t kGrain = 4096;
constexpr std::size_t kLine = 64;
// A training step makes some hundreds of large tensors, so that this is many steps.
constexpr uint64_t kIdle = 8192;

std::size_t rounded(std::size_t bytes, std::size_t to) { return std::max(to, (bytes + to - 1) / to * to); }

class Heap {
 public:
  void* take(std::size_t bytes) {
    const std::size_t size = rounded(bytes, kGrain);
    const std::lock_guard lock(mutex_);
    if (++takes_ % (kIdle / 8) == 0) release(kIdle);
    auto found = by_size_.lower_bound({size, nullptr});
    if (found == by_size_.end()) {
      add_piece(rounded(size, size < kPiece ? kPiece : kPage));
      found = by_size_.lower_bound({size, nullptr});
    }
    const auto [free_bytes, memory] = *found;
    remove_free(memory, free_bytes);
    if (free_bytes > size) add_free(memory + size, free_bytes - size);
    used_.emplace(memory, size);
    return memory;
  }

  void give_back(char* memory) {
    const std::lock_guard lock(mutex_);
    const auto found = used_.find(memory);
    std::size_t bytes = found->second;
    used_.erase(found);
    // Neighbours which are free, of the same piece, become one with it.
    const auto after = free_.lower_bound(memory);
    if (after != free_.end() && after->first == memory + bytes && pieces_.count(after->first) == 0) {
      const std::size_t more = after->second;
      remove_free(memory + bytes, more);
      bytes += more;
    }
    const auto behind = free_.lower_bound(memory);
    if (behind != free_.begin() && pieces_.count(memory) == 0) {
      const auto [start, before] = *std::prev(behind);
      if (start + before == memory) {
        remove_free(start, before);
        memory = start;
        bytes += before;
      }
    }
    add_free(memory, bytes);
    const auto piece = pieces_.find(memory);
    if (piece != pieces_.end() && piece->second.bytes == bytes) piece->second.free_since = takes_;
  }

  std::size_t release_all() {
    const std::lock_guard lock(mutex_);
    return release(0);
  }

  std::mutex& mutex() { return mutex_; }

 private:
  struct Piece {
    std::size_t bytes;
    uint64_t free_since;
  };

  std::mutex mutex_;
  std::map<char*, Piece> pieces_;
  std::map<char*, std::size_t> free_;
  std::set<std::pair<std::size_t, char*>> by_size_;
  std::unordered_map<char*, std::size_t> used_;
  uint64_t takes_ = 0;

  void add_free(char* memory, std::size_t bytes) {
    free_.emplace(memory, bytes);
    by_size_.emplace(bytes, memory);
  }

  void remove_free(char* memory, std::size_t bytes) {
    free_.erase(memory);
    by_size_.erase({bytes, memory});
  }

  void add_piece(std::size_t bytes) {
    void* memory = std::aligned_alloc(kPage, bytes);
    if (memory == nullptr && release(0) > 0) memory = std::aligned_alloc(kPage, bytes);
    if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    pieces_.emplace(static_cast<char*>(memory), Piece{bytes, takes_});
    add_free(static_cast<char*>(memory), bytes);
  }

  // The pieces which have been free during `age` allocations.
  std::size_t release(uint64_t age) {
    std::size_t released = 0;
    for (auto piece = pieces_.begin(); piece != pieces_.end();) {
      const auto found = free_.find(piece->first);
      if (found != free_.end() && found->second == piece->second.bytes && takes_ - piece->second.free_since >= age) {
        remove_free(piece->first, piece->second.bytes);
        std::free(piece->first);
        released += piece->second.bytes;
        piece = pieces_.erase(piece);
      } else {
        ++piece;
      }
    }
    return released;
  }
};

// Never destroyed: tensors may outlive static objects.
Heap& heap() {
  static auto* heap = [] {
    auto* made = new Heap;
#if defined(__unix__) || defined(__APPLE__)
    // A child of fork has no other threads: what one of them had locked would stay so.
    pthread_atfork([] { dwsep::heap().mutex().lock(); }, [] { dwsep::heap().mutex().unlock(); },
                   [] { dwsep::heap().mutex().unlock(); });
#endif
    return made;
  }();
  return *heap;
}

}  // namespace

Keeping keeping() {
#ifdef DWSEP_SANITIZE
  return Keeping::kOff;  // the sanitizer watches the borders of the C library's blocks
#else
  static const Keeping chosen = [] {
    const char* value = std::getenv("DWSEP_KEEP_MEMORY");
    const std::string name = value != nullptr ? value : "";
    return name == "0" ? Keeping::kOff : name == "spoil" ? Keeping::kSpoil : Keeping::kOn;
  }();
  return chosen;
#endif
}

void* take_memory(std::size_t bytes) {
  if (keeping() == Keeping::kOff) {
    void* memory = std::aligned_alloc(kLine, rounded(bytes, kLine));
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }
  void* memory = heap().take(bytes);
  // All bits set are a NaN in every type.
  if (keeping() == Keeping::kSpoil) std::memset(memory, 0xff, bytes);
  return memory;
}

void give_memory_back(void* memory) {
  if (keeping() == Keeping::kOff) {
    std::free(memory);
  } else {
    heap().give_back(static_cast<char*>(memory));
  }
}

std::size_t release_kept_memory() { return keeping() == Keeping::kOff ? 0 : heap().release_all(); }

}  // namespace dwsep
