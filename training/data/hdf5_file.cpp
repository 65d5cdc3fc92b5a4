// Tokens in an HDF5 file. It is opened for reading only; HDF5's own file lock stays off, since it fails on
// many network file systems and a reader needs none. The library does not survive every damage to the
// structure of a file in its old layout, which has no checksums there; files written with libver latest have.

#include <hdf5.h>

#include <algorithm>
#include <utility>

#include "autograd/check.h"
#include "training/data/formats.h"

namespace weft {

namespace {

// While it lives the library prints nothing on this thread: its errors become ours.
class Quiet {
 public:
  Quiet() {
    H5Eget_auto2(H5E_DEFAULT, &print_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  ~Quiet() { H5Eset_auto2(H5E_DEFAULT, print_, data_); }

  // The library's own words for the innermost cause of the last failure.
  static std::string reason() {
    std::string words;
    H5Ewalk2(
        H5E_DEFAULT, H5E_WALK_DOWNWARD,
        [](unsigned, const H5E_error2_t* error, void* out) -> herr_t {
          if (error->desc && *error->desc) *static_cast<std::string*>(out) = error->desc;
          return 0;
        },
        &words);
    return words.empty() ? "unknown HDF5 error" : words;
  }

 private:
  H5E_auto2_t print_ = nullptr;
  void* data_ = nullptr;
};

class Handle {
 public:
  Handle() = default;
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  operator hid_t() const { return id_; }

 private:
  hid_t id_ = -1;
  herr_t (*close_)(hid_t) = nullptr;
};

// A one-dimensional integer dataset.
class IntegerDataset {
 public:
  IntegerDataset() = default;
  IntegerDataset(const std::string& path, hid_t file, const char* name) : where_(path + ":/" + name) {
    dataset_ = Handle(check(H5Dopen2(file, name, H5P_DEFAULT)), H5Dclose);
    const Handle type(check(H5Dget_type(dataset_)), H5Tclose);
    if (H5Tget_class(type) != H5T_INTEGER) throw Error(Exit::data, "does not hold integers", where_);
    space_ = Handle(check(H5Dget_space(dataset_)), H5Sclose);
    const int rank = H5Sget_simple_extent_ndims(space_);
    if (rank != 1) throw Error(Exit::data, text("has ", rank, " dimensions, 1 expected"), where_);
    hsize_t count = 0;
    check(H5Sget_simple_extent_dims(space_, &count, nullptr));
    size_ = static_cast<int64_t>(count);
  }

  int64_t size() const { return size_; }
  std::string where(int64_t index) const { return text(where_, "[", index, "]"); }
  void read(int64_t begin, std::span<int64_t> out) const {
    if (out.empty()) return;
    const hsize_t start = static_cast<hsize_t>(begin), count = out.size();
    const Handle from(check(H5Scopy(space_)), H5Sclose),
        to(check(H5Screate_simple(1, &count, nullptr)), H5Sclose);
    check(H5Sselect_hyperslab(from, H5S_SELECT_SET, &start, nullptr, &count, nullptr));
    if (H5Dread(dataset_, H5T_NATIVE_INT64, to, from, H5P_DEFAULT, out.data()) < 0)
      throw Error(Exit::data, "cannot be read: " + Quiet::reason(), where(begin), "write the file again");
  }

 private:
  template <class T>
  T check(T result) const {
    if (result < 0)
      throw Error(Exit::data, "cannot be read: " + Quiet::reason(), where_, "write the file again");
    return result;
  }

  std::string where_;
  Handle dataset_, space_;
  int64_t size_ = 0;
};

class Hdf5Tokens : public TokenArray {
 public:
  explicit Hdf5Tokens(std::unique_ptr<InputFile> file) : watched_(std::move(file)) {
    const Quiet quiet;
    hbool_t safe = false;
    if (H5is_library_threadsafe(&safe) < 0 || !safe)
      throw Error(Exit::data, "this HDF5 library is built without thread safety, which the loader needs",
                  watched_->path(), "convert the file to .bin, or install a thread-safe HDF5");
    const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
    H5Pset_file_locking(access, false, true);
    file_ = Handle(H5Fopen(watched_->path().c_str(), H5F_ACC_RDONLY, access), H5Fclose);
    if (file_ < 0)
      throw Error(Exit::data, "is no complete HDF5 file: " + Quiet::reason(), byte_of(watched_->path(), 0),
                  "it is damaged, cut off, or its writer never closed it; write it again");
    tokens_ = IntegerDataset(watched_->path(), file_, "tokens");
  }

  int64_t size() const override { return tokens_.size(); }
  std::string where(int64_t index) const override { return tokens_.where(index); }
  void read(int64_t begin, std::span<int64_t> out) const override {
    const Quiet quiet;
    tokens_.read(begin, out);
    watched_->check_unchanged();
  }

  std::vector<DocumentRange> documents(int32_t eos) const {
    const Quiet quiet;
    if (H5Lexists(file_, "offsets", H5P_DEFAULT) <= 0) return split_at_end_tokens(*this, eos);
    const IntegerDataset dataset(watched_->path(), file_, "offsets");
    // Piece by piece: a damaged size must end in a message, not in an allocation of it.
    std::vector<DocumentRange> ranges;
    std::vector<int64_t> piece(1 << 16);
    int64_t before = 0;
    for (int64_t i = 0; i < dataset.size(); ++i) {
      const int64_t place = i % static_cast<int64_t>(piece.size());
      if (place == 0) {
        piece.resize(std::min(piece.size(), static_cast<size_t>(dataset.size() - i)));
        dataset.read(i, piece);
      }
      const int64_t offset = piece[place];
      if (i == 0 ? offset != 0 : offset < before || offset > size())
        throw Error(
            Exit::data,
            text("is ", offset, "; offsets start at 0, never fall and stay within ", size(), " tokens"),
            dataset.where(i));
      if (i > 0) ranges.push_back({before, offset - before});
      before = offset;
    }
    if (dataset.size() == 0 || before != size())
      throw Error(Exit::data, text("ends at ", before, ", the last offset must be the ", size(), " tokens"),
                  dataset.where(std::max<int64_t>(0, dataset.size() - 1)));
    return ranges;
  }

 private:
  std::unique_ptr<InputFile> watched_;
  Handle file_;
  IntegerDataset tokens_;
};

}  // namespace

SourcePtr open_hdf5(std::unique_ptr<InputFile> file, const SourceOptions& options) {
  const std::string path = file->path();
  auto array = std::make_unique<Hdf5Tokens>(std::move(file));
  auto documents = array->documents(options.eos);
  return std::make_unique<TokenSource>(path, "HDF5", std::move(array), std::move(documents), options);
}

}  // namespace weft
