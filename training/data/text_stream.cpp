#include "training/data/text_stream.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "autograd/check.h"
#include "training/data/input_file.h"

namespace weft {

namespace {

constexpr int64_t block_bytes = 1 << 18;
constexpr std::string_view byte_order_mark = "\xef\xbb\xbf";  // of UTF-8: how some editors begin a file
const char* const damaged = "the compressed data is damaged or cut off; write the file again";

}  // namespace

// Hands out the decoded bytes block by block; none are left when it returns an empty string.
class TextStream::Decoder {
 public:
  explicit Decoder(const std::string& path) : file_(path) {}
  virtual ~Decoder() = default;
  virtual void next(std::string& out) { out = raw(); }

 protected:
  std::string raw() {
    std::string block(static_cast<size_t>(std::min(block_bytes, file_.size() - at_)), '\0');
    file_.read(at_, static_cast<int64_t>(block.size()), block.data());
    at_ += static_cast<int64_t>(block.size());
    return block;
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(Exit::data, what, byte_of(file_.path(), at_), damaged);
  }

 private:
  InputFile file_;
  int64_t at_ = 0;
};

namespace {

class Gzip : public TextStream::Decoder {
 public:
  explicit Gzip(const std::string& path) : Decoder(path) {
    CHECK(inflateInit2(&stream_, 15 + 16) == Z_OK,
          "gzip: no memory");  // 16: a gzip header, not a bare zlib one
  }
  ~Gzip() override { inflateEnd(&stream_); }

  void next(std::string& out) override {
    out.clear();
    while (out.empty()) {
      if (stream_.avail_in == 0) {
        input_ = raw();
        if (input_.empty() && inside_) fail("ends inside a gzip member");
        if (input_.empty()) return;
        stream_.next_in = reinterpret_cast<Bytef*>(input_.data());
        stream_.avail_in = static_cast<uInt>(input_.size());
      }
      if (!inside_) inflateReset(&stream_);  // the next member: gzip files may be joined end to end
      inside_ = true;
      out.resize(block_bytes);
      stream_.next_out = reinterpret_cast<Bytef*>(out.data());
      stream_.avail_out = static_cast<uInt>(out.size());
      const int code = inflate(&stream_, Z_NO_FLUSH);
      out.resize(out.size() - stream_.avail_out);
      if (code == Z_STREAM_END)
        inside_ = false;
      else if (code != Z_OK && code != Z_BUF_ERROR)
        fail(text("is not valid gzip: ", stream_.msg ? stream_.msg : "error"));
    }
  }

 private:
  z_stream stream_{};
  std::string input_;
  bool inside_ = false;
};

class Zstd : public TextStream::Decoder {
 public:
  explicit Zstd(const std::string& path) : Decoder(path) {}

  void next(std::string& out) override {
    out.clear();
    while (out.empty()) {
      // With all input taken the decoder may still hold output; only a call that yields none asks for more
      // input.
      if (input_.pos == input_.size && !pending_) {
        block_ = raw();
        if (block_.empty() && inside_) fail("ends inside a zstd frame");
        if (block_.empty()) return;
        input_ = {block_.data(), block_.size(), 0};
      }
      out.resize(block_bytes);
      ZSTD_outBuffer output{out.data(), out.size(), 0};
      const size_t left = ZSTD_decompressStream(context_.get(), &output, &input_);
      if (ZSTD_isError(left)) fail(text("is not valid zstd: ", ZSTD_getErrorName(left)));
      inside_ = left != 0;
      pending_ = output.pos == output.size && inside_;
      out.resize(output.pos);
    }
  }

 private:
  std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> context_{ZSTD_createDCtx(), ZSTD_freeDCtx};
  std::string block_;
  ZSTD_inBuffer input_{nullptr, 0, 0};
  bool inside_ = false, pending_ = false;
};

std::unique_ptr<TextStream::Decoder> decoder_for(const std::string& path) {
  const InputFile file(path);
  std::array<unsigned char, 4> magic{};
  file.read(0, std::min<int64_t>(file.size(), magic.size()), magic.data());
  if (magic[0] == 0x1f && magic[1] == 0x8b) return std::make_unique<Gzip>(path);
  if (magic == std::array<unsigned char, 4>{0x28, 0xb5, 0x2f, 0xfd}) return std::make_unique<Zstd>(path);
  for (const char* suffix : {".gz", ".zst"})
    if (path.ends_with(suffix))
      throw Error(Exit::data, text("is not ", suffix, " data"), byte_of(path, 0), damaged);
  return std::make_unique<TextStream::Decoder>(path);
}

}  // namespace

TextStream::TextStream(const std::string& path) : path_(path), decoder_(decoder_for(path)) {}
TextStream::~TextStream() = default;

bool TextStream::fill() {
  at_ = 0;  // first, since next() empties the buffer and may throw
  decoder_->next(buffer_);
  return !buffer_.empty();
}

bool TextStream::line(std::string& out) {
  out.clear();
  if (at_ == buffer_.size() && !fill()) return false;
  offset_ = next_offset_;
  ++number_;
  while (true) {
    const size_t end = buffer_.find('\n', at_);
    const size_t stop = end == std::string::npos ? buffer_.size() : end;
    out.append(buffer_, at_, stop - at_);
    next_offset_ += static_cast<int64_t>(stop - at_);
    at_ = stop;
    if (end != std::string::npos) {
      ++at_;
      ++next_offset_;
      break;
    }
    if (!fill()) break;
  }
  if (!out.empty() && out.back() == '\r') out.pop_back();
  if (number_ == 1 && out.starts_with(byte_order_mark)) out.erase(0, byte_order_mark.size());
  return true;
}

std::string TextStream::where() const { return text(path_, ":", number_, " (byte ", offset_, ")"); }

}  // namespace weft
