#pragma once
// Errors: one exception type that carries what a person needs (what, where, what to do) and the exit code
// that docs/contract.md promises for it.

#include <sstream>
#include <stdexcept>
#include <string>

namespace weft {

// The exit codes of the contract.
enum class Exit : int {
  ok = 0,
  usage = 64,          // unknown command, flag, mechanism or recipe name
  data = 65,           // data or tensor file
  no_checkpoint = 66,  // no usable checkpoint
  peer_lost = 69,
  internal = 70,
  cannot_create = 73,  // output exists, is locked, or cannot be created
  io = 74,             // I/O error, disk full
  stopped = 75,        // stopped by a signal, resumable
  recipe = 78,         // recipe or override, refused combination
  numerics = 80,
  hang = 81,
};

class Error : public std::runtime_error {
 public:
  // what: the failure; where: file:line:column, key or tensor (may be empty); advice: what to do (may be
  // empty).
  Error(Exit code, const std::string& what, std::string where = {}, std::string advice = {})
      : std::runtime_error(what), code(code), where(std::move(where)), advice(std::move(advice)) {}

  Exit code;
  std::string where;
  std::string advice;
};

// "a", 3, "b" -> "a3b"
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace weft

// A condition that only a mistake in the calling code can break; the message names the operation and both
// shapes.
#define CHECK(condition, ...)                                                                 \
  do                                                                                          \
    if (!(condition)) throw ::weft::Error(::weft::Exit::internal, ::weft::text(__VA_ARGS__)); \
  while (0)
