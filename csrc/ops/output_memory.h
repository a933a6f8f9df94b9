// Tensors which operators return.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

namespace dwsep {

// Uninitialised, on the CPU. Large ones come from memory which the library keeps (cpu/kept_memory.h): their storage
// cannot be resized.
torch::stable::Tensor empty_output(const std::vector<int64_t>& sizes, torch::headeronly::ScalarType dtype,
                                   torch::headeronly::MemoryFormat format);

// Uninitialised, on the CPU, of PyTorch's own memory.
torch::stable::Tensor empty_tensor(
    const std::vector<int64_t>& sizes, torch::headeronly::ScalarType dtype,
    torch::headeronly::MemoryFormat format = torch::headeronly::MemoryFormat::Contiguous);

}  // namespace dwsep
