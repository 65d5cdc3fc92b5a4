#include "training/data/tokenizer_normalize.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "autograd/check.h"
#include "training/data/tokenizer_utf8.h"

namespace weft {
namespace {

using Kind = NormalizerStep::Kind;

std::string unicode_form(std::string_view valid, Kind kind) {
  int options = UTF8PROC_STABLE;
  options |= kind == Kind::nfc || kind == Kind::nfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (kind == Kind::nfkc || kind == Kind::nfkd) options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(valid.data()),
                                             static_cast<utf8proc_ssize_t>(valid.size()), &mapped,
                                             static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, std::free);
  CHECK(size >= 0, "normalize: ", utf8proc_errmsg(size), " on ", valid.size(), " bytes");
  return {reinterpret_cast<const char*>(mapped), static_cast<size_t>(size)};
}

std::string apply(std::string text, const NormalizerStep& step) {
  if (step.kind == Kind::prepend) return text.empty() ? text : step.to + text;
  if (step.kind == Kind::replace) return replace_all(text, step.from, step.to);
  // Nothing changes in ASCII, and NFC changes nothing below U+0300 (bytes cc 80).
  const unsigned char first_changed = step.kind == Kind::nfc ? 0xcc : 0x80;
  if (std::ranges::all_of(text, [&](char c) { return static_cast<unsigned char>(c) < first_changed; }))
    return text;
  std::string out;
  split_by_validity(text, [&](std::string_view run, bool is_valid) {
    out += is_valid ? unicode_form(run, step.kind) : std::string(run);
  });
  return out;
}

}  // namespace

std::string normalize(std::string_view text, const std::vector<NormalizerStep>& steps) {
  std::string out(text);
  for (const NormalizerStep& step : steps) out = apply(std::move(out), step);
  return out;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  for (size_t at; (at = text.find(from)) != text.npos; text.remove_prefix(at + from.size()))
    out.append(text.substr(0, at)).append(to);
  return out.append(text);
}

}  // namespace weft
