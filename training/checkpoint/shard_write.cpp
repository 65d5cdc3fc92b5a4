#include "autograd/fault.h"
#include "training/checkpoint/hdf5_handle.h"
#include "training/checkpoint/shard.h"

namespace weft::ckpt {
namespace {

using hdf5::Handle;

struct Writer {
  std::string path;
  Handle file;

  template <class Status>
  Status ok(Status status, const char* action) const {
    return hdf5::check(status, Exit::io, action, path);
  }

  void attribute(hid_t owner, const char* name, const std::string& value) const {
    const Handle type(ok(H5Tcopy(H5T_C_S1), "copy a type"), H5Tclose);
    ok(H5Tset_size(type, value.size() + 1), "size a string");
    const Handle space(ok(H5Screate(H5S_SCALAR), "create a space"), H5Sclose);
    const Handle made(
        ok(H5Acreate2(owner, name, type, space, H5P_DEFAULT, H5P_DEFAULT), "create an attribute"), H5Aclose);
    ok(H5Awrite(made, type, value.c_str()), "write an attribute");
  }

  void attribute(hid_t owner, const char* name, const std::vector<int64_t>& values) const {
    const hsize_t size = values.size();
    const Handle space(ok(H5Screate_simple(1, &size, nullptr), "create a space"), H5Sclose);
    const Handle made(
        ok(H5Acreate2(owner, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT), "create an attribute"),
        H5Aclose);
    ok(H5Awrite(made, H5T_NATIVE_INT64, values.data()), "write an attribute");
  }

  void dataset(const ArrayPiece& piece) const;
};

struct Stored {
  const char* name;
  hid_t type;
};

Stored stored_as(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64: return {"f64", H5T_IEEE_F64LE};
    case Dtype::f32: return {"f32", H5T_IEEE_F32LE};
    case Dtype::bf16: return {"bf16", H5T_STD_U16LE};
    case Dtype::i32: return {"i32", H5T_STD_I32LE};
  }
  return {"", -1};
}

void Writer::dataset(const ArrayPiece& piece) const {
  const int64_t total = count_of(piece.shape);
  CHECK(piece.begin >= 0 && piece.count >= 0 && piece.begin + piece.count <= total,
        "checkpoint: ", piece.name, " [", piece.begin, ", +", piece.count, ") is outside its ", total,
        " elements");
  CHECK(!piece.name.empty() && piece.name.find_first_of("/[") == std::string::npos && piece.name != ".",
        "checkpoint: the name '", piece.name, "' is not allowed");
  const std::string name =
      piece.whole() ? piece.name : text(piece.name, "[", piece.begin, ":", piece.begin + piece.count, "]");
  std::vector<hsize_t> dims(piece.shape.begin(), piece.shape.end());
  if (!piece.whole()) dims = {static_cast<hsize_t>(piece.count)};

  const Stored stored = stored_as(piece.dtype);
  const Handle space(ok(dims.empty() ? H5Screate(H5S_SCALAR)
                                     : H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr),
                        "create a space"),
                     H5Sclose);
  const Handle layout(ok(H5Pcreate(H5P_DATASET_CREATE), "create a property list"), H5Pclose);
  ok(H5Pset_layout(layout, H5D_CONTIGUOUS), "set the layout");
  ok(H5Pset_fill_time(layout, H5D_FILL_TIME_NEVER), "set the fill time");
  ok(H5Pset_obj_track_times(layout, false), "switch time stamps off");
  Handle made(ok(H5Dcreate2(file, name.c_str(), stored.type, space, H5P_DEFAULT, layout, H5P_DEFAULT),
                 "create a dataset"),
              H5Dclose);
  attribute(made, "dtype", std::string(stored.name));
  if (!piece.whole()) {
    attribute(made, "begin", std::vector<int64_t>{piece.begin});
    attribute(made, "shape", piece.shape);
  }
  if (piece.count > 0)
    ok(H5Dwrite(made, stored.type, H5S_ALL, H5S_ALL, H5P_DEFAULT, piece.data), "write an array");
  if (!made.close()) ok(-1, "close a dataset");
}

}  // namespace

void write_shard(const std::string& path, const ShardIdentity& identity,
                 const std::vector<ArrayPiece>& pieces, const std::function<void()>& pulse) {
  const auto lock = hdf5::enter();
  fault::point(fault::Phase::save_data);
  const Handle access = hdf5::access_without_lock();
  const hid_t id = H5Fcreate(path.c_str(), H5F_ACC_EXCL, H5P_DEFAULT, access);
  Writer writer{path, Handle(hdf5::check(id, Exit::io, "create the file", path), H5Fclose)};
  writer.attribute(writer.file, "format", std::vector<int64_t>{shard_format});
  writer.attribute(writer.file, "run", identity.run);
  writer.attribute(writer.file, "step", std::vector<int64_t>{identity.step});
  writer.attribute(writer.file, "rank", std::vector<int64_t>{identity.rank});
  writer.attribute(writer.file, "world", std::vector<int64_t>{identity.world});
  for (size_t i = 0; i <= pieces.size(); ++i) {
    if (i == pieces.size() / 2) fault::point(fault::Phase::save_mid);
    if (i < pieces.size()) writer.dataset(pieces[i]);
    if (pulse) pulse();
  }
  writer.ok(H5Fflush(writer.file, H5F_SCOPE_LOCAL), "flush the file");
  if (!writer.file.close()) writer.ok(-1, "close the file");
}

}  // namespace weft::ckpt
