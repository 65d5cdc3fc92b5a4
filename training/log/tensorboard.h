#pragma once
// TensorBoard event files, written without TensorFlow or protobuf. A file is a sequence of records (length,
// masked CRC-32C of the length, bytes, masked CRC-32C of the bytes); a record is one `Event` message of
// tensorflow/core/util/event.proto.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "training/log/append_file.h"
#include "training/log/step_record.h"

namespace weft {

// CRC-32C (Castagnoli), as in RFC 3720, appendix B.4.
uint32_t crc32c(std::string_view bytes);
std::string tensorboard_record(std::string_view event);

class TensorBoardFile {
 public:
  // A new events.out.tfevents.TIME.HOST.PID.COUNT in folder. resume_step: what earlier files say of later
  // steps is withdrawn. Error (cannot_create) as AppendFile.
  TensorBoardFile(const std::string& folder, std::optional<int64_t> resume_step, Warn warn);

  // Scalars under the tags that torchtitan uses, so that its dashboards fit.
  void step(const StepRecord& record);
  void evaluation(const StepRecord& record);  // what was measured after its step was written
  // Text, shown as it is (in a code block).
  void text(const std::string& tag, int64_t step, const std::string& text);
  // The run goes on from an earlier step: later points are withdrawn.
  void rewind(int64_t step);

 private:
  void append(const std::string& records);

  std::string unsaid_;  // the first records, until they are in the file
  AppendFile file_;
};

}  // namespace weft
