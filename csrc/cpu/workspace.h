// Memory for the tensors which a program makes and uses up within one call, kept for the next call: fresh pages would
// cost more than the kernels.
#pragma once

#include <cstddef>

namespace dwsep {

// 64-byte aligned, contents undefined; another thread's call meanwhile gets other memory.
class Workspace {
 public:
  explicit Workspace(std::size_t floats);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  float* data() const { return data_; }

 private:
  float* data_;
  std::size_t bytes_;
};

}  // namespace dwsep
