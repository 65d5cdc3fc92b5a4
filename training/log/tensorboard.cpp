#include "training/log/tensorboard.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <bit>
#include <concepts>
#include <cstdio>

#include "autograd/check.h"
#include "training/log/clock.h"
#include "training/log/printable.h"

namespace weft {
namespace {

constexpr std::array<uint32_t, 256> crc_table = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0);
    table[i] = crc;
  }
  return table;
}();

// A CRC over data that holds its own CRC is weak, hence the mask.
uint32_t masked_crc32c(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + 0xa282ead8u; }

template <std::unsigned_integral T>
std::string little_endian(T value) {
  std::string out;
  for (size_t i = 0; i < sizeof(T); ++i) out += static_cast<char>(value >> (8 * i));
  return out;
}

// A protobuf message: fields one after another, each a key (number and wire type) and a value.
class Message {
 public:
  Message& integer(int field, int64_t value) {
    key(field, 0);
    varint(static_cast<uint64_t>(value));
    return *this;
  }
  Message& real(int field, double value) {
    key(field, 1);
    bytes_ += little_endian(std::bit_cast<uint64_t>(value));
    return *this;
  }
  Message& real(int field, float value) {
    key(field, 5);
    bytes_ += little_endian(std::bit_cast<uint32_t>(value));
    return *this;
  }
  Message& string(int field, std::string_view value) {
    key(field, 2);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  Message& message(int field, const Message& value) { return string(field, value.bytes_); }
  const std::string& bytes() const { return bytes_; }

 private:
  void key(int field, unsigned wire_type) { varint(static_cast<unsigned>(field) << 3 | wire_type); }
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

Message event_message(double time, int64_t step) {
  return Message().real(1, time).integer(2, step);  // wall_time, step
}

std::string version_record() {
  return tensorboard_record(event_message(wall_seconds(), 0).string(3, "brain.Event:2").bytes());
}

// SessionLog START: readers drop what they have of this step and later ones.
std::string restart_record(int64_t step) {
  const Message session = Message().integer(1, 1);
  return tensorboard_record(event_message(wall_seconds(), step).message(7, session).bytes());
}

void add_scalar(Message& summary, const char* tag, std::optional<double> value) {
  if (value) summary.message(1, Message().string(1, tag).real(2, static_cast<float>(*value)));
}

void add_evaluation(Message& summary, const StepRecord& r) {
  add_scalar(summary, "validation_metrics/loss", r.val_loss);
  add_scalar(summary, "validation_metrics/bits_per_byte", r.val_bpb);
  add_scalar(summary, "validation_metrics/accuracy", r.val_accuracy);
  add_scalar(summary, "validation_metrics/exact", r.val_exact);
}

std::string new_path(const std::string& folder) {
  static std::atomic<int> count{0};
  char host[256] = "localhost";
  ::gethostname(host, sizeof host - 1);
  char stamp[32];
  std::snprintf(stamp, sizeof stamp, "%010lld", static_cast<long long>(wall_seconds()));
  return text(folder, "/events.out.tfevents.", stamp, ".", host, ".", ::getpid(), ".", count++);
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = ~0u;
  for (const char c : bytes) crc = (crc >> 8) ^ crc_table[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  return ~crc;
}

std::string tensorboard_record(std::string_view event) {
  const std::string length = little_endian(static_cast<uint64_t>(event.size()));
  return length + little_endian(masked_crc32c(length)) + std::string(event) +
         little_endian(masked_crc32c(event));
}

TensorBoardFile::TensorBoardFile(const std::string& folder, std::optional<int64_t> resume_step, Warn warn)
    : unsaid_(version_record()), file_(new_path(folder), AppendFile::Open::create, std::move(warn)) {
  if (resume_step) unsaid_ += restart_record(*resume_step + 1);
  append("");
}

void TensorBoardFile::append(const std::string& records) {
  if (unsaid_.empty())
    file_.append(records);
  else if (file_.append(unsaid_ + records))
    unsaid_.clear();
}

void TensorBoardFile::evaluation(const StepRecord& r) {
  Message summary;
  add_evaluation(summary, r);
  append(tensorboard_record(event_message(r.time, r.step).message(5, summary).bytes()));
}

void TensorBoardFile::step(const StepRecord& r) {
  Message summary;
  const auto scalar = [&summary](const char* tag, std::optional<double> value) {
    add_scalar(summary, tag, value);
  };
  const auto percent = [](std::optional<double> share) {
    return share ? std::optional(100 * *share) : std::nullopt;
  };
  scalar("loss_metrics/global_avg_loss", r.loss);
  scalar("loss_metrics/global_max_loss", r.max_loss);
  scalar("grad_norm", r.grad_norm);
  scalar("optimizer/lr", r.lr);
  scalar("throughput(tps)", r.tokens_per_s);
  scalar("tflops", r.tflops);
  scalar("mfu(%)", percent(r.mfu));
  scalar("time_metrics/end_to_end(s)", r.step_s);
  scalar("time_metrics/data_loading(%)", percent(r.data_s / r.step_s));
  scalar("time_metrics/communication(%)", percent(r.comm_s / r.step_s));
  scalar("memory/max_reserved(GiB)", static_cast<double>(r.peak_bytes) / (1 << 30));
  scalar("n_tokens_seen", static_cast<double>(r.tokens));
  add_evaluation(summary, r);
  append(tensorboard_record(event_message(r.time, r.step).message(5, summary).bytes()));
}

void TensorBoardFile::text(const std::string& tag, int64_t step, const std::string& text) {
  std::string block = "    ";  // TensorBoard renders Markdown
  for (const char c : printable(text, true)) block += c == '\n' ? std::string("\n    ") : std::string(1, c);

  constexpr int dt_string = 7, data_class_tensor = 2;
  const Message shape = Message().message(2, Message().integer(1, 1));  // one dimension of size 1
  const Message tensor = Message().integer(1, dt_string).message(2, shape).string(8, block);
  const Message metadata = Message().message(1, Message().string(1, "text")).integer(4, data_class_tensor);
  const Message value = Message().string(1, printable(tag)).message(8, tensor).message(9, metadata);
  append(tensorboard_record(
      event_message(wall_seconds(), step).message(5, Message().message(1, value)).bytes()));
}

void TensorBoardFile::rewind(int64_t step) { append(restart_record(step + 1)); }

}  // namespace weft
