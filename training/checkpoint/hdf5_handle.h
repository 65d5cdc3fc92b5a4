#pragma once
// Owning HDF5 handles, and HDF5 failures as exceptions. Included by .cpp files only.

#include <hdf5.h>
#include <mutex>
#include <string>
#include <utility>

#include "autograd/check.h"

namespace weft::hdf5 {

// The innermost message of the library's error stack, such as "file write failed: ... No space left on
// device".
inline std::string reason() {
  std::string message;
  const auto first = [](unsigned n, const H5E_error2_t* error, void* out) -> herr_t {
    if (n == 0 && error->desc) *static_cast<std::string*>(out) = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, first, &message);
  H5Eclear2(H5E_DEFAULT);
  return message.empty() ? "HDF5 gives no reason" : message;
}

// Hold the result while calling HDF5, closing handles included: not every build of the library is safe with
// threads, and files of data are read while checkpoints are written. No error printing,
// and no clean-up at exit, which would try again to flush files whose writing has failed.
[[nodiscard]] inline std::unique_lock<std::mutex> enter() {
  static std::mutex mutex;
  std::unique_lock lock(mutex);
  static const herr_t once = H5dont_atexit();
  (void)once;
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // per thread, where the library knows threads
  return lock;
}

using Close = herr_t (*)(hid_t);

class Handle {
 public:
  Handle(hid_t id, Close close) : id_(id), close_(close) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&&) = delete;
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  operator hid_t() const { return id_; }  // NOLINT: stands for the id
  bool close() { return close_(std::exchange(id_, -1)) >= 0; }

 private:
  hid_t id_;
  Close close_;
};

// Throws Error{code} at `where` unless `status`, what an HDF5 call returned, is good.
template <class Status>
Status check(Status status, Exit code, const char* action, const std::string& where) {
  if (status < 0) throw Error(code, text("cannot ", action, ": ", reason()), where, "");
  return status;
}

// Access without the library's own file lock, which fails on many shared file systems.
inline Handle access_without_lock() {
  Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
#if H5_VERSION_GE(1, 14, 0) || (H5_VERS_MAJOR == 1 && H5_VERS_MINOR == 10 && H5_VERS_RELEASE >= 7)
  H5Pset_file_locking(access, false, true);
#endif
  return access;
}

}  // namespace weft::hdf5
