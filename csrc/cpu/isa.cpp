#include "cpu/isa.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <vector>

#include "cpu/simd/tables.h"

namespace dwsep {
namespace {

struct Entry {
  const KernelTable* table;
  bool supported;
  bool on_request = false;  // never chosen as the best
};

// A build may have any of the paths.
#if defined(__x86_64__) || defined(_M_X64)
[[maybe_unused]] bool cpu_has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

[[maybe_unused]] bool cpu_has_avx512() {
#ifdef DWSEP_EMULATE_AVX512
  return true;  // a test build: its 512-bit vectors are made of shorter ones
#endif
  return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

#if defined(DWSEP_HAS_AVX512_BF16) || defined(DWSEP_HAS_AMX)
[[maybe_unused]] bool cpu_has_avx512_bf16() { return cpu_has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

#ifdef DWSEP_HAS_AMX
// Tile registers are 8 KB a thread: Linux gives them to a process which asks.
bool cpu_has_amx() {
#if defined(__x86_64__) && defined(__linux__) && defined(SYS_arch_prctl)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kBf16) == 0 || (d & kTile) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return cpu_has_avx512_bf16() && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

#if defined(DWSEP_HAS_AVX512_BF16) || defined(DWSEP_HAS_AMX)
KernelTable with_vectors(KernelTable table, const VectorKernels& vectors) {
  static_cast<VectorKernels&>(table) = vectors;
  return table;
}
#endif

const std::vector<Entry>& entries() {
  static const std::vector<Entry> list = [] {
    std::vector<Entry> all;
    all.push_back({&portable::table, true});
#ifdef DWSEP_HAS_AVX2
    all.push_back({&avx2::table, cpu_has_avx2()});
#endif
#ifdef DWSEP_HAS_AVX512
    all.push_back({&avx512::table, cpu_has_avx512()});
#endif
#ifdef DWSEP_HAS_AVX512_BF16
    static const KernelTable with_pairs = with_vectors(avx512_bf16::table, avx512::table);
    all.push_back({&with_pairs, cpu_has_avx512_bf16()});
#endif
#ifdef DWSEP_HAS_AMX
    // Where a core's other thread is busy, tiles take two to four times as long, and floats as vectors are the faster.
    static const KernelTable with_pieces = with_vectors(amx::table_of_pieces, avx512::table);
    static const KernelTable with_tiles = with_vectors(amx::table, avx512::table);
    all.push_back({&with_pieces, cpu_has_amx(), true});
    all.push_back({&with_tiles, cpu_has_amx()});
#endif
#ifdef DWSEP_HAS_NEON
    all.push_back({&neon::table, true});  // part of every 64-bit Arm CPU
#endif
    return all;
  }();
  return list;
}

const KernelTable* best() {
  const KernelTable* found = nullptr;
  for (const Entry& entry : entries()) {
    if (entry.supported && !entry.on_request) found = entry.table;
  }
  return found;
}

std::atomic<const KernelTable*>& current() {
  static std::atomic<const KernelTable*> table{best()};
  return table;
}

std::string names(bool only_supported) {
  std::string joined;
  for (const Entry& entry : entries()) {
    if (only_supported && !entry.supported) continue;
    if (!joined.empty()) joined += ',';
    joined += entry.table->isa;
  }
  return joined;
}

}  // namespace

std::string compiled_isas() { return names(false); }
std::string supported_isas() { return names(true); }

bool set_isa(const std::string& name) {
  for (const Entry& entry : entries()) {
    if (name == entry.table->isa && entry.supported) {
      current() = entry.table;
      return true;
    }
  }
  return false;
}

const KernelTable& kernels() { return *current(); }

}  // namespace dwsep
