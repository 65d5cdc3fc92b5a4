#pragma once
// Integers in an HDF5 file that is only read: a dataset with one axis.

#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace weft::hdf5 {

class Integers {
 public:
  // Opens the file, and the dataset of this name in it. Errors (data): no whole HDF5 file, with `where`; no
  // such dataset, or none of integers with one axis. The library does not survive every damage to the
  // structure of a file in its old layout, which has no checksums there; files written with libver latest
  // have.
  Integers(const std::string& path, const std::string& name, const std::string& where);
  ~Integers();
  Integers(const Integers&) = delete;
  Integers& operator=(const Integers&) = delete;

  bool beside(const char* name) const;  // whether the file has another dataset, of this name
  int64_t size() const;
  std::string where(int64_t index) const;  // file, dataset and index of one
  void read(int64_t begin, std::span<int64_t> out) const;

 private:
  struct Handles;
  std::string where_;
  std::unique_ptr<Handles> handles_;
  int64_t size_ = 0;
};

}  // namespace weft::hdf5
