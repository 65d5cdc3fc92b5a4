#pragma once
// The last words of a command that failed: one line for people on stderr, one of JSON for scripts on stdout.

#include <cstdint>
#include <exception>
#include <optional>
#include <string>

#include "autograd/check.h"

namespace weft {

// Any exception as an Error: memory exhausted and everything unforeseen are Exit::internal.
Error as_error(const std::exception& exception);

// "weft: WHAT (WHERE); DO", without newline. WHERE and DO are left out where empty.
std::string error_line(const Error& error);
void print_error(const Error& error);  // error_line on stderr, in one write

// {"weft":"train/1","exit":78,"error":{"what":…,"where":…,"do":…,"rank":0,"step":null}}, without newline.
// command: name and version of the result. step: none before the first.
std::string failure_json(const std::string& command, const Error& error, int rank,
                         std::optional<int64_t> step = {});

}  // namespace weft
