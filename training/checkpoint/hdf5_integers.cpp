#include "training/checkpoint/hdf5_integers.h"

#include "training/checkpoint/hdf5_handle.h"

namespace weft::hdf5 {

struct Integers::Handles {
  Handle file, dataset, space;
};

namespace {

template <class Status>
Status readable(Status status, const std::string& where) {
  if (status < 0) throw Error(Exit::data, "cannot be read: " + reason(), where, "write the file again");
  return status;
}

}  // namespace

Integers::Integers(const std::string& path, const std::string& name, const std::string& where)
    : where_(path + ":/" + name) {
  const auto lock = enter();
  const Handle access = access_without_lock();
  Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access), H5Fclose);
  if (file < 0)
    throw Error(Exit::data, "is not a complete HDF5 file: " + reason(), where,
                "it is damaged, cut off, or its writer never closed it; write it again");
  Handle dataset(readable(H5Dopen2(file, name.c_str(), H5P_DEFAULT), where_), H5Dclose);
  const Handle type(readable(H5Dget_type(dataset), where_), H5Tclose);
  if (H5Tget_class(type) != H5T_INTEGER) throw Error(Exit::data, "does not hold integers", where_);
  Handle space(readable(H5Dget_space(dataset), where_), H5Sclose);
  const int rank = H5Sget_simple_extent_ndims(space);
  if (rank != 1) throw Error(Exit::data, text("has ", rank, " dimensions, 1 expected"), where_);
  hsize_t count = 0;
  readable(H5Sget_simple_extent_dims(space, &count, nullptr), where_);
  size_ = static_cast<int64_t>(count);
  handles_.reset(new Handles{std::move(file), std::move(dataset), std::move(space)});
}

Integers::~Integers() {
  const auto lock = enter();
  handles_.reset();
}

bool Integers::beside(const char* name) const {
  const auto lock = enter();
  return H5Lexists(handles_->file, name, H5P_DEFAULT) > 0;
}

int64_t Integers::size() const { return size_; }

std::string Integers::where(int64_t index) const { return text(where_, "[", index, "]"); }

void Integers::read(int64_t begin, std::span<int64_t> out) const {
  if (out.empty()) return;
  const auto lock = enter();
  const hsize_t start = static_cast<hsize_t>(begin), count = out.size();
  const Handle from(readable(H5Scopy(handles_->space), where_), H5Sclose),
      to(readable(H5Screate_simple(1, &count, nullptr), where_), H5Sclose);
  readable(H5Sselect_hyperslab(from, H5S_SELECT_SET, &start, nullptr, &count, nullptr), where_);
  readable(H5Dread(handles_->dataset, H5T_NATIVE_INT64, to, from, H5P_DEFAULT, out.data()), where(begin));
}

}  // namespace weft::hdf5
