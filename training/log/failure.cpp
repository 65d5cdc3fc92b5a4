#include "training/log/failure.h"

#include <unistd.h>

#include <filesystem>
#include <new>
#include <nlohmann/json.hpp>

#include "training/log/printable.h"

namespace weft {

Error as_error(const std::exception& exception) {
  if (const auto* error = dynamic_cast<const Error*>(&exception)) return *error;
  if (dynamic_cast<const std::bad_alloc*>(&exception))
    return Error(Exit::internal, "out of memory", "host", "lower micro_tokens, or use more ranks");
  if (const auto* files = dynamic_cast<const std::filesystem::filesystem_error*>(&exception))
    return Error(Exit::io, files->code().message(), files->path1().string(), "check its permissions");
  return Error(Exit::internal, exception.what());
}

std::string error_line(const Error& error) {
  std::string line = text("weft: ", error.what());
  if (!error.where.empty()) line += " (" + error.where + ")";
  if (!error.advice.empty()) line += "; " + error.advice;
  return printable(line);
}

void print_error(const Error& error) {
  const std::string line = error_line(error) + "\n";
  // Where stderr is closed there is no one to tell.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
}

std::string failure_json(const std::string& command, const Error& error, int rank,
                         std::optional<int64_t> step) {
  nlohmann::ordered_json json = {{"weft", command},
                                 {"exit", static_cast<int>(error.code)},
                                 {"error",
                                  {{"what", printable(error.what())},
                                   {"where", printable(error.where)},
                                   {"do", printable(error.advice)},
                                   {"rank", rank},
                                   {"step", nullptr}}}};
  if (step) json["error"]["step"] = *step;
  if (command == "train/1") json["status"] = "failed";  // beside done and stopped
  return json.dump();
}

}  // namespace weft
