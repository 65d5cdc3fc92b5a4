#include "training/data/bpe.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <map>

#include "autograd/check.h"
#include "training/data/bpe_added.h"
#include "training/data/bpe_cache.h"
#include "training/data/bpe_merge.h"
#include "training/data/tokenizer_json.h"
#include "training/data/tokenizer_normalize.h"
#include "training/data/tokenizer_utf8.h"

namespace weft {
namespace {

constexpr std::string_view space_mark = "\xe2\x96\x81";  // "▁", U+2581

struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view s) const { return XXH3_64bits(s.data(), s.size()); }
};
using TokenIds = std::unordered_map<std::string, int32_t, TextHash, std::equal_to<>>;

[[noreturn]] void refuse(const std::string& what, const std::string& where) {
  throw Error(Exit::data, "the tokenizer " + what, where, "check the tokenizer file");
}

// What text can become. Ordinary tokens win over an added token that is spelled the same.
TokenIds token_ids(const BpeDefinition& d) {
  std::vector<bool> is_added(d.tokens.size()), is_apart(d.tokens.size());
  for (const AddedToken& t : d.added) {
    const std::string where = text("added token ", t.content, ", id ", t.id);
    if (t.content.empty()) refuse("has an empty added token", where);
    if (t.id < 0 || t.id >= static_cast<int32_t>(d.tokens.size()) || d.tokens[t.id] != t.content)
      refuse("has an added token that is not in its vocabulary", where);
    is_added[t.id] = true;
    is_apart[t.id] = !t.in_vocabulary;
  }
  TokenIds ids;
  for (bool added : {false, true})
    for (size_t id = 0; id < d.tokens.size(); ++id) {
      if (d.tokens[id].empty() || is_added[id] != added || is_apart[id]) continue;
      const bool is_new = ids.emplace(d.tokens[id], static_cast<int32_t>(id)).second;
      if (!is_new && !added) refuse("has the same token twice", text("id ", id, ", \"", d.tokens[id], '"'));
    }
  return ids;
}

// The id of each byte standing alone.
std::array<int32_t, 256> byte_ids(const BpeDefinition& d, const TokenIds& ids) {
  std::array<int32_t, 256> out;
  for (int b = 0; b < 256; ++b) {
    std::string token(1, static_cast<char>(b));
    if (d.symbols == BpeDefinition::Symbols::characters) {
      token.resize(6);
      std::snprintf(token.data(), 7, "<0x%02X>", b);
    }
    const auto it = ids.find(token);
    if (it == ids.end())
      refuse("would lose a byte: its vocabulary has no token for it", text("model.vocab, byte ", b));
    out[b] = it->second;
  }
  return out;
}

MergeTable merge_table(const BpeDefinition& d, const TokenIds& ids) {
  std::vector<int32_t> joined;
  joined.reserve(d.merges.size());
  const auto size = static_cast<int32_t>(d.tokens.size());
  for (size_t i = 0; i < d.merges.size(); ++i) {
    const auto [a, b] = d.merges[i];
    const std::string where = text("model.merges, entry ", i);
    if (std::min(a, b) < 0 || std::max(a, b) >= size) refuse("merges a token that it does not have", where);
    const auto it = ids.find(d.tokens[a] + d.tokens[b]);
    if (it == ids.end()) refuse("has no token for the result of a merge", where);
    joined.push_back(it->second);
  }
  return MergeTable(d.merges, joined);
}

std::vector<AddedToken> added_tokens(const BpeDefinition& d, bool normalized) {
  std::vector<AddedToken> out;
  for (AddedToken t : d.added) {
    if (t.normalized != normalized) continue;
    if (normalized) t.content = normalize(t.content, d.normalizer);
    out.push_back(std::move(t));
  }
  return out;
}

class BpeTokenizer : public Tokenizer {
 public:
  explicit BpeTokenizer(BpeDefinition definition)
      : d_(std::move(definition)),
        hash_(definition_hash(d_)),
        ids_(token_ids(d_)),
        byte_ids_(byte_ids(d_, ids_)),
        merges_(merge_table(d_, ids_)),
        raw_added_(added_tokens(d_, false)),
        normalized_added_(added_tokens(d_, true)) {
    check_id(d_.eos_id);
    if (d_.bos_id) check_id(*d_.bos_id);
    for (const SplitRule& rule : d_.splits) splitters_.push_back(make_splitter(rule));
    for (size_t id = 0; id < d_.tokens.size(); ++id) bytes_.push_back(decoded(d_.tokens[id]));
    for (const AddedToken& t : d_.added) bytes_[t.id] = t.content;
    may_cut_ = probe_newline_cuts();
    spaces_start_words_ = d_.symbols == BpeDefinition::Symbols::characters && !d_.ignore_merges &&
                          std::ranges::none_of(d_.tokens, [](const std::string& token) {
                            return word_end(token) < token.size();
                          });
  }

  std::string name() const override { return text("bpe-", vocab_size()); }
  int32_t vocab_size() const override { return static_cast<int32_t>(d_.tokens.size()); }
  int32_t eos_id() const override { return d_.eos_id; }
  std::optional<int32_t> bos_id() const override { return d_.bos_id; }
  std::string hash() const override { return hash_; }
  bool may_cut_at_newlines() const override { return may_cut_; }
  bool drops_first_space() const override { return d_.drop_first_space; }
  void save(const std::string& folder) const override { write_tokenizer_json(d_, folder); }

  std::string_view token_bytes(int32_t id) const override {
    check_id(id);
    return bytes_[id];
  }

  void encode_to(std::string_view text, SpecialText special, std::vector<int32_t>& out) const override {
    each_part(raw_added_, text, special, out, [&](std::string_view part) {
      const bool at_start = part.data() == text.data();
      if (d_.normalizer.empty()) return encode_normalized(part, at_start, special, out);
      encode_normalized(normalize(part, d_.normalizer), at_start, special, out);
    });
  }

 private:
  void check_id(int32_t id) const {
    if (id < 0 || id >= vocab_size() || d_.tokens[id].empty())
      throw Error(Exit::data, text("token ", id, " is not in the vocabulary of ", name()));
  }

  // Cuts text at the added tokens: their ids go to out, what lies between them to encode_part.
  template <class F>
  static void each_part(const AddedTokenMatcher& matcher, std::string_view text, SpecialText special,
                        std::vector<int32_t>& out, F&& encode_part) {
    size_t done = 0, from = 0;
    while (const auto match = matcher.find(text, from, done, special)) {
      if (match->begin > done) encode_part(text.substr(done, match->begin - done));
      out.push_back(match->id);
      done = match->end;
      from = match->next;
    }
    if (done < text.size()) encode_part(text.substr(done));
  }

  void encode_normalized(std::string_view text, bool at_start, SpecialText special,
                         std::vector<int32_t>& out) const {
    each_part(normalized_added_, text, special, out,
              [&](std::string_view part) { encode_part(part, at_start && part.data() == text.data(), out); });
  }

  // A stretch without added tokens; at_start: it begins the text.
  void encode_part(std::string_view part, bool at_start, std::vector<int32_t>& out) const {
    std::string rewritten;
    if (d_.add_prefix_space && !part.starts_with(' ')) part = rewritten.append(" ").append(part);
    if (d_.metaspace) {
      rewritten = replace_all(part, " ", space_mark);
      const bool prepend = *d_.metaspace == Prepend::always || (*d_.metaspace == Prepend::first && at_start);
      if (prepend && !rewritten.starts_with(space_mark)) rewritten.insert(0, space_mark);
      part = rewritten;
    }
    const auto encode_one = [&](std::string_view piece) {
      while (spaces_start_words_ && !piece.empty()) {
        const size_t end = word_end(piece);
        encode_piece(piece.substr(0, end), out);
        piece.remove_prefix(end);
      }
      if (!piece.empty()) encode_piece(piece, out);
    };
    // Invalid bytes are a piece of their own, which the patterns never see.
    split_by_validity(part, [&](std::string_view run, bool is_valid) {
      if (is_valid)
        split_from(0, run, encode_one);
      else
        encode_one(run);
    });
  }

  void split_from(size_t rule, std::string_view text, PieceSink sink) const {
    if (rule == splitters_.size()) return sink(text);
    const auto next = [&](std::string_view piece) { split_from(rule + 1, piece, sink); };
    if (rule + 1 == splitters_.size())
      splitters_[rule]->split(text, sink);
    else
      splitters_[rule]->split(text, next);
  }

  // The end of the "▁"s that start text and of what follows them up to the next "▁".
  static size_t word_end(std::string_view text) {
    size_t at = 0;
    while (text.substr(at).starts_with(space_mark)) at += space_mark.size();
    return std::min(text.find(space_mark, at), text.size());
  }

  void encode_piece(std::string_view piece, std::vector<int32_t>& out) const {
    // Each thread remembers words of the tokenizer it used last.
    thread_local struct {
      uint64_t owner = 0;
      WordCache cache;
      std::vector<int32_t> symbols;
    } mine;
    if (mine.owner != serial_) mine.cache.clear(), mine.owner = serial_;
    if (mine.cache.find(piece, out)) return;
    mine.symbols.clear();
    const auto whole = d_.ignore_merges ? ids_.find(piece) : ids_.end();
    if (whole != ids_.end()) {
      mine.symbols.push_back(whole->second);
    } else {
      first_symbols(piece, mine.symbols);
      merges_.apply(mine.symbols);
    }
    mine.cache.insert(piece, mine.symbols);
    out.insert(out.end(), mine.symbols.begin(), mine.symbols.end());
  }

  void first_symbols(std::string_view piece, std::vector<int32_t>& symbols) const {
    while (!piece.empty()) {
      const size_t length = d_.symbols == BpeDefinition::Symbols::characters ? utf8_length(piece) : 0;
      const auto it = length > 0 ? ids_.find(piece.substr(0, length)) : ids_.end();
      const size_t taken = std::max<size_t>(1, length);
      if (it != ids_.end())
        symbols.push_back(it->second);
      else
        for (unsigned char c : piece.substr(0, taken)) symbols.push_back(byte_ids_[c]);
      piece.remove_prefix(taken);
    }
  }

  std::string decoded(const std::string& token) const {
    if (d_.symbols == BpeDefinition::Symbols::bytes) return token;
    unsigned byte;
    if (token.size() == 6 && std::sscanf(token.c_str(), "<0x%2X>", &byte) == 1)
      return std::string(1, static_cast<char>(byte));
    return replace_all(token, space_mark, " ");
  }

  bool probe_newline_cuts() const {
    const auto rewrites = [](const NormalizerStep& s) {
      return s.kind == NormalizerStep::Kind::prepend || s.kind == NormalizerStep::Kind::replace;
    };
    if (splitters_.empty() && !d_.merges.empty()) return false;
    if (d_.symbols != BpeDefinition::Symbols::bytes || d_.metaspace || d_.add_prefix_space ||
        std::ranges::any_of(d_.normalizer, rewrites))
      return false;
    for (const AddedToken& t : d_.added)
      if (t.lstrip || t.content.find('\n') != std::string::npos) return false;
    const auto pieces = [&](const std::string& text) {
      std::vector<std::string> out;
      split_from(0, text, [&](std::string_view piece) { out.emplace_back(piece); });
      return out;
    };
    for (const std::string left : {"a", "Z", "9", "a b", "  a", "don't", "x12345", "x.y", "\n\na"})
      for (const std::string right : {"a", "Z", "9", "b\n\n", "12345 b", "a.b", "s"}) {
        std::vector<std::string> parts = pieces(left + "\n"), tail = pieces(right);
        parts.insert(parts.end(), tail.begin(), tail.end());
        if (parts != pieces(left + "\n" + right)) return false;
      }
    return true;
  }

  static uint64_t next_serial() {
    static std::atomic<uint64_t> last{0};
    return ++last;
  }

  BpeDefinition d_;
  std::string hash_;
  TokenIds ids_;
  std::array<int32_t, 256> byte_ids_;
  MergeTable merges_;
  AddedTokenMatcher raw_added_, normalized_added_;
  std::vector<std::unique_ptr<Splitter>> splitters_;
  std::vector<std::string> bytes_;  // what each id decodes to
  bool may_cut_ = false;
  // No token has a "▁" after another character, so no merge reaches across the start of a word: what has no
  // splitting pattern (Llama 2) can be encoded word by word all the same.
  bool spaces_start_words_ = false;
  uint64_t serial_ = next_serial();
};

}  // namespace

std::shared_ptr<const Tokenizer> make_bpe_tokenizer(BpeDefinition definition) {
  return std::make_shared<BpeTokenizer>(std::move(definition));
}

std::string definition_hash(const BpeDefinition& d) {
  std::string canon = "weft tokenizer 1";
  const auto number = [&](int64_t n) { canon.append(reinterpret_cast<const char*>(&n), sizeof n); };
  const auto string = [&](const std::string& s) {
    number(static_cast<int64_t>(s.size()));
    canon += s;
  };
  const auto flags = [&](std::initializer_list<int> list) {
    for (int flag : list) number(flag);
  };
  number(static_cast<int64_t>(d.tokens.size()));
  for (const std::string& token : d.tokens) string(token);
  number(static_cast<int64_t>(d.merges.size()));
  for (const auto& [a, b] : d.merges) flags({a, b});
  std::map<int32_t, const AddedToken*> added;
  for (const AddedToken& t : d.added) added[t.id] = &t;
  number(static_cast<int64_t>(added.size()));
  for (const auto& [id, t] : added) {
    string(t->content);
    flags({id, t->special, t->normalized, t->lstrip, t->rstrip});
  }
  number(static_cast<int64_t>(d.normalizer.size()));
  for (const NormalizerStep& step : d.normalizer) {
    number(static_cast<int>(step.kind));
    string(step.from);
    string(step.to);
  }
  number(static_cast<int64_t>(d.splits.size()));
  for (const SplitRule& rule : d.splits) {
    string(rule.pattern);
    flags({rule.literal, static_cast<int>(rule.keep), rule.invert});
  }
  flags({static_cast<int>(d.symbols), d.metaspace ? static_cast<int>(*d.metaspace) : -1, d.add_prefix_space,
         d.ignore_merges, d.drop_first_space});
  const XXH128_hash_t hash = XXH3_128bits(canon.data(), canon.size());
  char hex[33];
  std::snprintf(hex, sizeof hex, "%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                static_cast<unsigned long long>(hash.low64));
  return hex;
}

}  // namespace weft
