#define DWSEP_ISA_NAMESPACE amx
#define DWSEP_ISA_NAME "amx"
#define DWSEP_AMX
#define DWSEP_SHARES_VECTORS  // with AVX-512
#define DWSEP_LANES 16
#define DWSEP_COLUMN_VECTORS 2
#define DWSEP_TILE_PIXELS 14
#define DWSEP_ACCUMULATORS 28

#include "cpu/simd/kernels.inc"
