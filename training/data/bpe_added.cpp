#include "training/data/bpe_added.h"

#include <cstring>

#include "training/data/pretokenize_classes.h"
#include "training/data/tokenizer_utf8.h"

namespace weft {
namespace {

uint64_t edge(uint32_t node, char byte) {
  return static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(byte);
}

// Bytes of the white space character that starts text, or 0.
size_t leading_space(std::string_view text) {
  if (utf8_length(text) == 0) return 0;
  size_t length;
  const char32_t c = code_point(text.data(), length);
  return char_classes()[c] == CharClass::space ? length : 0;
}

size_t trailing_space(std::string_view text) {
  for (size_t n = 1; n <= std::min<size_t>(3, text.size()); ++n)
    if (leading_space(text.substr(text.size() - n)) == n) return n;
  return 0;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    uint32_t node = 0;
    for (char c : tokens_[i].content) {
      const auto [it, is_new] = edges_.try_emplace(edge(node, c), static_cast<uint32_t>(ends_.size()));
      if (is_new) ends_.push_back(-1);
      node = it->second;
    }
    ends_[node] = static_cast<int32_t>(i);
    const char first = tokens_[i].content[0];
    if (!starts_[static_cast<unsigned char>(first)]) ++start_count_;
    starts_[static_cast<unsigned char>(first)] = true;
    only_start_ = first;
  }
}

const AddedToken* AddedTokenMatcher::longest_at(std::string_view text, SpecialText special) const {
  const AddedToken* best = nullptr;
  uint32_t node = 0;
  for (char c : text) {
    const auto it = edges_.find(edge(node, c));
    if (it == edges_.end()) break;
    node = it->second;
    if (ends_[node] < 0) continue;
    const AddedToken& token = tokens_[ends_[node]];
    if (!token.special || special == SpecialText::parse) best = &token;
  }
  return best;
}

std::optional<AddedTokenMatcher::Match> AddedTokenMatcher::find(std::string_view text, size_t from,
                                                                size_t done, SpecialText special) const {
  if (start_count_ == 0) return {};
  for (size_t at = from; at < text.size(); ++at) {
    if (start_count_ == 1) {
      const void* hit = std::memchr(text.data() + at, only_start_, text.size() - at);
      if (hit == nullptr) return {};
      at = static_cast<size_t>(static_cast<const char*>(hit) - text.data());
    } else if (!starts_[static_cast<unsigned char>(text[at])]) {
      continue;
    }
    const AddedToken* token = longest_at(text.substr(at), special);
    if (token == nullptr) continue;
    const size_t end = at + token->content.size();
    Match match{at, end, end, token->id};
    if (token->lstrip && done < at)
      while (size_t n = trailing_space(text.substr(done, match.begin - done))) match.begin -= n;
    if (token->rstrip)
      while (size_t n = leading_space(text.substr(match.end))) match.end += n;
    return match;
  }
  return {};
}

}  // namespace weft
