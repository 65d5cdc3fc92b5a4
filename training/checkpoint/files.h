#pragma once
// Files as a careful writer needs them: every system call checked, EINTR and short writes handled, errors as
// Error{Exit::io} with the path and the system's own words; Exit::data for a missing input,
// Exit::cannot_create for an output that cannot be made.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

class File {
 public:
  static File open_read(const std::string& path);
  static File create(const std::string& path);  // refuses to write over an existing file
  File(File&& other) noexcept;
  File& operator=(File&&) = delete;
  ~File();

  // Up to `bytes` bytes at `offset`; 0 at the end of the file.
  size_t read_some(void* out, size_t bytes, size_t offset) const;
  // Exactly `bytes` bytes; Exit::data if the file ends before.
  void read(void* out, size_t bytes, size_t offset) const;
  void write(const void* data, size_t bytes);
  // To the disk. An error here means that data are lost: throw the file away, a second fsync would lie.
  void sync() const;
  // Forgets cached pages, so that a later read comes from the disk. Best effort.
  void drop_cache() const;
  int64_t size() const;
  void close();

 private:
  File(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_ = -1;
  std::string path_;
};

// A file that appears under its name whole or not at all: written beside it, synced, renamed, the folder
// synced. Without commit() nothing remains. Error (cannot_create) where the name is that of a folder, a
// device or a pipe, which renaming would fail on or replace.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  void write(const void* data, size_t bytes) { file_.write(data, bytes); }
  void commit();

 private:
  std::string path_, temporary_;
  File file_;
  bool committed_ = false;
};

void write_file_atomically(const std::string& path, std::string_view content);
std::string read_text_file(const std::string& path, size_t limit);

// A whole file, mapped read-only. Errors: Exit::data.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

bool exists(const std::string& path);
void make_folder(const std::string& path);  // and its parents
void sync_folder(const std::string& path);
void rename_path(const std::string& from, const std::string& to);  // no sync
// Exchanges two paths in one step; false where the file system cannot.
bool exchange_paths(const std::string& a, const std::string& b);
void remove_tree(const std::string& path);
// Names, sorted; empty if there is no such folder.
std::vector<std::string> list_folder(const std::string& path);
int64_t free_bytes(const std::string& path);

}  // namespace weft
