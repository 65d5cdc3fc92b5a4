#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "autograd/check.h"
#include "training/data/tokenizer_json.h"

namespace weft {
namespace {

using nlohmann::json;
using Keep = SplitRule::Keep;
using Kind = NormalizerStep::Kind;
using Symbols = BpeDefinition::Symbols;

json read_json(const std::string& path) {
  std::ifstream file(path);
  if (!file)
    throw Error(Exit::data, "cannot read " + path, {}, "name a tokenizer.json, its folder, or \"byte\"");
  try {
    return json::parse(file);
  } catch (const json::exception& e) {
    throw Error(Exit::data, text("not JSON: ", e.what()), path);
  }
}

class Reader {
 public:
  Reader(std::string path, json file) : path_(std::move(path)), file_(std::move(file)) {}

  BpeDefinition run() {
    only(file_, "",
         {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
          "decoder", "model"});
    for (const char* key : {"truncation", "padding"})
      if (!part(file_, key).is_null()) refuse(key, "set it to null: it would change the ids of long texts");
    read_normalizer(part(file_, "normalizer"), "normalizer");
    read_pre_tokenizer(part(file_, "pre_tokenizer"), "pre_tokenizer");
    read_decoder(part(file_, "decoder"), "decoder");
    read_model(part(file_, "model"));
    read_post_processor(part(file_, "post_processor"), "post_processor");
    read_config();
    return std::move(d_);
  }

 private:
  [[noreturn]] void refuse(
      const std::string& field,
      const std::string& advice = "use a byte-level or byte-fallback BPE without it") const {
    throw Error(Exit::data, "the tokenizer's " + field + " is not supported", path_, advice);
  }
  static const json& part(const json& object, const char* key) {
    static const json null;
    const auto it = object.find(key);
    return it == object.end() ? null : *it;
  }
  static bool flag(const json& object, const char* key, bool otherwise) {
    const json& value = part(object, key);
    return value.is_null() ? otherwise : value.get<bool>();
  }
  void only(const json& object, const std::string& field,
            std::initializer_list<std::string_view> keys) const {
    if (!object.is_object()) refuse(field.empty() ? "a file that is not an object" : field);
    for (const auto& [key, value] : object.items())
      if (std::ranges::find(keys, key) == keys.end()) refuse(field.empty() ? key : field + "." + key);
  }
  static std::string type(const json& object) { return object.is_null() ? "" : object.value("type", ""); }

  // Calls each(member, its field name) for a Sequence's members, or once for a single part.
  template <class F>
  void each_of(const json& value, const std::string& field, const char* list, F&& each) {
    if (value.is_null()) return;
    if (type(value) != "Sequence") return each(value, field);
    only(value, field, {"type", list});
    for (size_t i = 0; i < value.at(list).size(); ++i)
      each(value.at(list)[i], text(field, '.', list, '[', i, ']'));
  }

  void read_normalizer(const json& value, const std::string& field) {
    each_of(value, field, "normalizers", [&](const json& n, const std::string& at) {
      static const std::unordered_map<std::string, Kind> forms = {
          {"NFC", Kind::nfc}, {"NFD", Kind::nfd}, {"NFKC", Kind::nfkc}, {"NFKD", Kind::nfkd}};
      if (type(n) == "Sequence") return read_normalizer(n, at);
      if (const auto form = forms.find(type(n)); form != forms.end()) {
        only(n, at, {"type"});
        d_.normalizer.push_back({form->second, {}, {}});
      } else if (type(n) == "Prepend") {
        only(n, at, {"type", "prepend"});
        d_.normalizer.push_back({Kind::prepend, {}, n.at("prepend")});
      } else if (type(n) == "Replace") {
        only(n, at, {"type", "pattern", "content"});
        const std::string from = n.at("pattern").value("String", "");
        if (from.empty()) refuse(at + ".pattern");
        d_.normalizer.push_back({Kind::replace, from, n.at("content")});
      } else {
        refuse(at + ".type " + type(n));
      }
    });
  }

  void read_pre_tokenizer(const json& value, const std::string& field) {
    bool byte_level = false, first = true;
    each_of(value, field, "pretokenizers", [&](const json& p, const std::string& at) {
      if (byte_level) refuse(at + " (after ByteLevel)");
      if (type(p) == "ByteLevel") {
        only(p, at, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
        d_.add_prefix_space = flag(p, "add_prefix_space", true);
        if (d_.add_prefix_space && !first) refuse(at + ".add_prefix_space (after another pre-tokenizer)");
        if (flag(p, "use_regex", true)) d_.splits.push_back({.pattern = gpt2_pattern});
        byte_level = true;
      } else if (type(p) == "Split") {
        only(p, at, {"type", "pattern", "behavior", "invert"});
        d_.splits.push_back(split_rule(p, at));
      } else if (type(p) == "Digits") {
        only(p, at, {"type", "individual_digits"});
        d_.splits.push_back({.pattern = flag(p, "individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)"});
      } else if (type(p) == "Metaspace" && first) {
        read_metaspace(p, at);
      } else {
        refuse(at + ".type " + type(p));
      }
      first = false;
    });
    d_.symbols = byte_level ? Symbols::bytes : Symbols::characters;
    if (!byte_level && !flag(part(file_, "model"), "byte_fallback", false))
      refuse(field + " without ByteLevel and model.byte_fallback false");
    if (byte_level && d_.metaspace) refuse(field + " (Metaspace before ByteLevel)");
  }

  SplitRule split_rule(const json& p, const std::string& field) const {
    static const std::unordered_map<std::string, Keep> behaviors = {
        {"Isolated", Keep::isolated},
        {"Removed", Keep::removed},
        {"MergedWithPrevious", Keep::merged_with_previous},
        {"MergedWithNext", Keep::merged_with_next},
        {"Contiguous", Keep::contiguous}};
    SplitRule rule;
    const auto behavior = behaviors.find(p.at("behavior"));
    if (behavior == behaviors.end()) refuse(field + ".behavior");
    rule.keep = behavior->second;
    rule.invert = flag(p, "invert", false);
    const json& pattern = p.at("pattern");
    only(pattern, field + ".pattern", {"String", "Regex"});
    rule.literal = pattern.contains("String");
    rule.pattern = pattern.at(rule.literal ? "String" : "Regex");
    return rule;
  }

  void read_metaspace(const json& p, const std::string& field) {
    only(p, field, {"type", "replacement", "str_rep", "add_prefix_space", "prepend_scheme", "split"});
    if (p.at("replacement") != "▁") refuse(field + ".replacement");
    const std::string scheme =
        p.value("prepend_scheme", flag(p, "add_prefix_space", true) ? "always" : "never");
    d_.metaspace = scheme == "always" ? Prepend::always : scheme == "first" ? Prepend::first : Prepend::never;
    if (flag(p, "split", true))
      d_.splits.push_back({.pattern = "▁", .literal = true, .keep = Keep::merged_with_next});
  }

  // Decoding follows from the vocabulary; here it is only made sure that the file means the same.
  void read_decoder(const json& value, const std::string& field) {
    each_of(value, field, "decoders", [&](const json& p, const std::string& at) {
      const std::string kind = type(p);
      bool known = kind == "ByteLevel" && d_.symbols == Symbols::bytes;
      if (d_.symbols == Symbols::characters) {
        if (kind == "Replace") known = p.at("pattern") == json{{"String", "▁"}} && p.at("content") == " ";
        if (kind == "Strip") known = p.at("content") == " " && p.at("start") == 1 && p.at("stop") == 0;
        if (kind == "Metaspace") known = p.at("replacement") == "▁";
        if (kind == "ByteFallback" || kind == "Fuse") known = true;
        if (kind == "Strip" || (kind == "Metaspace" && p.value("prepend_scheme", "always") != "never"))
          d_.drop_first_space = true;
      }
      if (!known) refuse(at + " " + kind);
    });
  }

  void read_model(const json& model) {
    only(model, "model",
         {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
          "byte_fallback", "ignore_merges", "vocab", "merges"});
    if (type(model) != "BPE" && !(type(model).empty() && model.contains("merges")))
      refuse("model.type " + type(model));
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (!part(model, key).is_null() && part(model, key) != "") refuse(text("model.", key));
    if (!part(model, "dropout").is_null() && part(model, "dropout") != 0) refuse("model.dropout");
    d_.ignore_merges = flag(model, "ignore_merges", false);

    std::unordered_map<std::string, int32_t> ids;
    for (const auto& [token, id] : model.at("vocab").items()) ids[token] = id.get<int32_t>();
    read_added(ids);
    for (const auto& [token, id] : ids) place(token, id);
    const auto id_of = [&](const std::string& token) {
      const auto it = ids.find(token);
      if (it == ids.end()) refuse("model.merges with \"" + token + "\", which is not in the vocabulary", "");
      return it->second;
    };
    for (const json& merge : model.at("merges")) {
      if (merge.is_array() && merge.size() == 2) {
        d_.merges.emplace_back(id_of(merge[0]), id_of(merge[1]));
      } else {
        const std::string pair = merge.get<std::string>();
        const size_t space = pair.find(' ');
        if (space == pair.npos || pair.find(' ', space + 1) != pair.npos)
          refuse("model.merges entry \"" + pair + '"', "");
        d_.merges.emplace_back(id_of(pair.substr(0, space)), id_of(pair.substr(space + 1)));
      }
    }
    check_added_ids(static_cast<int32_t>(ids.size()));
  }

  std::string& slot(int32_t id) {
    if (id < 0 || id > 1 << 24) refuse(text("token id ", id), "");
    if (id >= static_cast<int32_t>(d_.tokens.size())) d_.tokens.resize(id + 1);
    return d_.tokens[id];
  }

  void place(const std::string& token, int32_t id) {
    if (token.empty()) refuse("an empty token in model.vocab", "");
    std::string& at = slot(id);
    if (at == token) return;  // an added token that model.vocab lists as well
    if (!at.empty()) refuse(text("id ", id, " for two tokens"), "");
    const auto bytes = d_.symbols == Symbols::bytes ? from_byte_alphabet(token) : token;
    if (!bytes) refuse("model.vocab with \"" + token + "\", which is not in the byte alphabet", "");
    at = *bytes;
  }

  void read_added(const std::unordered_map<std::string, int32_t>& ids) {
    for (const json& t : part(file_, "added_tokens")) {
      only(t, "added_tokens", {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
      AddedToken token{.id = t.at("id"),
                       .content = t.at("content"),
                       .special = flag(t, "special", false),
                       .normalized = flag(t, "normalized", true),
                       .lstrip = flag(t, "lstrip", false),
                       .rstrip = flag(t, "rstrip", false)};
      if (flag(t, "single_word", false)) refuse("added_tokens \"" + token.content + "\" single_word");
      const auto listed = ids.find(token.content);
      if (listed != ids.end() && listed->second != token.id)
        refuse("added_tokens \"" + token.content + "\" with another id than in model.vocab", "");
      token.in_vocabulary = listed != ids.end();
      slot(token.id) = token.content;
      d_.added.push_back(std::move(token));
    }
  }

  // Hugging Face counts added tokens that model.vocab lacks from its size on, whatever the file says.
  void check_added_ids(int32_t vocabulary) const {
    std::unordered_map<std::string, int32_t> ids;
    int32_t next = vocabulary;
    for (const AddedToken& t : d_.added) {
      const int32_t id = t.in_vocabulary ? t.id : ids.emplace(t.content, next).first->second;
      if (id != t.id)
        refuse(text("added_tokens \"", t.content, "\" with id ", t.id, ", where Hugging Face reads ", id),
               "");
      next = std::max(next, id + 1);
    }
  }

  // A template may put one token before the text (bos) and one after it.
  void read_post_processor(const json& value, const std::string& field) {
    each_of(value, field, "processors", [&](const json& p, const std::string& at) {
      if (type(p) == "ByteLevel") return;  // moves offsets, not ids
      if (type(p) != "TemplateProcessing") refuse(at + ".type " + type(p));
      bool before = true;
      for (const json& piece : p.at("single")) {
        if (piece.contains("Sequence")) {
          before = false;
          continue;
        }
        const std::string name = piece.at("SpecialToken").at("id");
        const json& ids = p.at("special_tokens").at(name).at("ids");
        if (ids.size() != 1 || (before && d_.bos_id)) refuse(at + ".single");
        if (before) d_.bos_id = ids[0].get<int32_t>();
      }
    });
  }

  void read_config() {
    const auto beside = std::filesystem::path(path_).parent_path() / "tokenizer_config.json";
    if (std::filesystem::exists(beside)) {
      const json config = read_json(beside.string());
      const json& eos = part(config, "eos_token");
      const std::string name = eos.is_string()   ? eos.get<std::string>()
                               : eos.is_object() ? eos.value("content", "")
                                                 : "";
      if (const auto id = added_id(name)) {
        d_.eos_id = *id;
        return;
      }
    }
    for (const char* name :
         {"<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<｜end▁of▁sentence｜>", "<|im_end|>"})
      if (const auto id = added_id(name)) {
        d_.eos_id = *id;
        return;
      }
    throw Error(Exit::data, "the tokenizer has no end token", path_,
                "name one of its added tokens as eos_token in a tokenizer_config.json beside it");
  }

  std::optional<int32_t> added_id(const std::string& content) const {
    for (const AddedToken& t : d_.added)
      if (t.content == content) return t.id;
    return {};
  }

  std::string path_;
  json file_;
  BpeDefinition d_;
};

}  // namespace

BpeDefinition read_tokenizer_json(const std::string& path) {
  namespace fs = std::filesystem;
  const std::string file = fs::is_directory(path) ? (fs::path(path) / "tokenizer.json").string() : path;
  Reader reader(file, read_json(file));
  try {
    return reader.run();
  } catch (const json::exception& e) {
    throw Error(Exit::data, text("not a tokenizer.json: ", e.what()), file);
  }
}

}  // namespace weft
