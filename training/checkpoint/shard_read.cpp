#include <array>
#include <limits>

#include "training/checkpoint/files.h"
#include "training/checkpoint/hdf5_handle.h"
#include "training/checkpoint/shard.h"

namespace weft::ckpt {
namespace {

using hdf5::Handle;

constexpr int most_dimensions = H5S_MAX_RANK;
constexpr size_t longest_string = 256;

struct StoredType {
  const char* name;
  Dtype dtype;
  H5T_class_t hdf5_class;
};
constexpr std::array<StoredType, 4> stored_types = {{{"f64", Dtype::f64, H5T_FLOAT},
                                                     {"f32", Dtype::f32, H5T_FLOAT},
                                                     {"bf16", Dtype::bf16, H5T_INTEGER},
                                                     {"i32", Dtype::i32, H5T_INTEGER}}};

struct Reader {
  std::string path;
  Handle file;
  int64_t file_bytes = 0;

  template <class Status>
  Status ok(Status status, const std::string& what) const {
    return hdf5::check(status, Exit::data, ("read " + what).c_str(), path);
  }
  void require(bool condition, const std::string& what) const {
    if (!condition) throw Error(Exit::data, what, path, "");
  }

  Handle attribute(hid_t owner, const char* name, H5T_class_t wanted) const {
    Handle opened(ok(H5Aopen(owner, name, H5P_DEFAULT), text("the attribute ", name)), H5Aclose);
    const Handle type(ok(H5Aget_type(opened), "a type"), H5Tclose);
    require(H5Tget_class(type) == wanted, text("the attribute ", name, " has the wrong type"));
    return opened;
  }

  std::string string_attribute(hid_t owner, const char* name) const {
    const Handle opened = attribute(owner, name, H5T_STRING);
    const Handle type(ok(H5Aget_type(opened), "a type"), H5Tclose);
    const size_t size = H5Tget_size(type);
    require(size > 0 && size <= longest_string && H5Tis_variable_str(type) == 0,
            text("the attribute ", name, " has a size of ", size));
    const Handle space(ok(H5Aget_space(opened), "a space"), H5Sclose);
    require(H5Sget_simple_extent_npoints(space) == 1,
            text("the attribute ", name, " is not a single string"));
    std::string value(size, '\0');
    ok(H5Aread(opened, type, value.data()), text("the attribute ", name));
    return value.c_str();
  }

  std::vector<int64_t> integers_attribute(hid_t owner, const char* name) const {
    const Handle opened = attribute(owner, name, H5T_INTEGER);
    const Handle space(ok(H5Aget_space(opened), "a space"), H5Sclose);
    const hssize_t count = H5Sget_simple_extent_npoints(space);
    require(count > 0 && count <= most_dimensions, text("the attribute ", name, " has ", count, " values"));
    std::vector<int64_t> values(static_cast<size_t>(count));
    ok(H5Aread(opened, H5T_NATIVE_INT64, values.data()), text("the attribute ", name));
    return values;
  }
  int64_t integer_attribute(hid_t owner, const char* name) const {
    return integers_attribute(owner, name).front();
  }

  void check_identity(const ShardIdentity& wanted) const;
  StoredPiece piece(const std::string& dataset) const;
};

void Reader::check_identity(const ShardIdentity& wanted) const {
  const int64_t format = integer_attribute(file, "format");
  require(format == shard_format, text("shard format ", format, ", this program reads ", shard_format));
  const std::string run = string_attribute(file, "run");
  require(run == wanted.run, text("belongs to run ", run, ", not to ", wanted.run));
  const auto same = [&](const char* name, int64_t value) {
    const int64_t found = integer_attribute(file, name);
    require(found == value, text("belongs to ", name, " ", found, ", not ", value));
  };
  same("step", wanted.step);
  same("world", wanted.world);
  same("rank", wanted.rank);
}

StoredPiece Reader::piece(const std::string& dataset) const {
  const Handle opened(ok(H5Dopen2(file, dataset.c_str(), H5P_DEFAULT), dataset), H5Dclose);
  const std::string dtype = string_attribute(opened, "dtype");
  const StoredType* stored = nullptr;
  for (const StoredType& type : stored_types)
    if (dtype == type.name) stored = &type;
  require(stored != nullptr, text(dataset, ": unknown dtype ", dtype));
  const Handle type(ok(H5Dget_type(opened), "a type"), H5Tclose);
  require(H5Tget_class(type) == stored->hdf5_class && H5Tget_order(type) == H5T_ORDER_LE &&
              H5Tget_size(type) == static_cast<size_t>(size_of(stored->dtype)),
          text(dataset, ": is not stored as ", dtype));

  StoredPiece piece;
  piece.dtype = stored->dtype;
  piece.file = path;
  const Handle space(ok(H5Dget_space(opened), "a space"), H5Sclose);
  const int rank = ok(H5Sget_simple_extent_ndims(space), "dimensions");
  std::vector<hsize_t> dims(static_cast<size_t>(rank));
  ok(H5Sget_simple_extent_dims(space, dims.data(), nullptr), "dimensions");
  piece.count = H5Sget_simple_extent_npoints(space);

  const size_t bracket = dataset.find('[');
  piece.name = dataset.substr(0, bracket);
  if (bracket == std::string::npos) {
    piece.shape.assign(dims.begin(), dims.end());
  } else {
    require(rank == 1, text(dataset, ": a part has to be flat"));
    piece.begin = integer_attribute(opened, "begin");
    piece.shape = integers_attribute(opened, "shape");
  }
  int64_t total = 1;
  for (const int64_t dim : piece.shape)
    require(dim >= 0 && !__builtin_mul_overflow(total, dim, &total), text(dataset, ": an impossible shape"));
  require(piece.begin >= 0 && piece.count >= 0 && piece.begin <= total && piece.count <= total - piece.begin,
          text(dataset, ": lies outside its ", total, " elements"));
  if (piece.count == 0) return piece;

  const haddr_t offset = H5Dget_offset(opened);
  require(offset != HADDR_UNDEF, text(dataset, ": is not stored in one run of bytes"));
  piece.offset = static_cast<int64_t>(offset);
  require(piece.offset <= file_bytes && piece.count <= (file_bytes - piece.offset) / size_of(piece.dtype),
          text(dataset, ": ends after the file"));
  return piece;
}

}  // namespace

std::vector<StoredPiece> read_shard_index(const std::string& path, const ShardIdentity& identity) {
  const auto lock = hdf5::enter();
  const int64_t bytes = File::open_read(path).size();
  const Handle access = hdf5::access_without_lock();
  const hid_t id = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access);
  const Reader reader{path, Handle(hdf5::check(id, Exit::data, "open as HDF5", path), H5Fclose), bytes};
  reader.check_identity(identity);

  std::vector<std::string> names;
  const auto collect = [](hid_t, const char* name, const auto*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->emplace_back(name);
    return 0;
  };
  reader.ok(H5Literate(reader.file, H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, collect, &names),
            "the list of arrays");
  std::vector<StoredPiece> pieces;
  for (const std::string& name : names) pieces.push_back(reader.piece(name));
  return pieces;
}

}  // namespace weft::ckpt
