// Memory for the tensors which a program makes and uses up within one call.
#pragma once

#include <cstddef>

#include "cpu/kept_memory.h"

namespace dwsep {

// 64-byte aligned, contents undefined; another thread's call meanwhile gets other memory.
class Workspace {
 public:
  explicit Workspace(std::size_t floats) : data_(static_cast<float*>(take_memory(floats * sizeof(float)))) {}
  ~Workspace() { give_memory_back(data_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  float* data() const { return data_; }

 private:
  float* data_;
};

}  // namespace dwsep
