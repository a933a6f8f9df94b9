// The kernel tables which exist in this build, one per instruction set, each from a compilation of its own.
#pragma once

#include "cpu/conv_problem.h"
#include "cpu/kernel_table.h"

namespace dwsep {

namespace portable {
extern const KernelTable table;
}
#ifdef DWSEP_HAS_AVX2
namespace avx2 {
extern const KernelTable table;
}
#endif
#ifdef DWSEP_HAS_AVX512
namespace avx512 {
extern const KernelTable table;
}
#endif
#ifdef DWSEP_HAS_AVX512_BF16
namespace avx512_bf16 {
extern const KernelTable table;
}
#endif
#ifdef DWSEP_HAS_AMX
namespace amx {
extern const KernelTable table;
extern const KernelTable table_of_pieces;
}  // namespace amx
#endif
#ifdef DWSEP_HAS_NEON
namespace neon {
extern const KernelTable table;
}
#endif

}  // namespace dwsep
