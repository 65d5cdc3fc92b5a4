#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "autograd/check.h"
#include "training/data/tokenizer_json.h"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;
using Keep = SplitRule::Keep;
using Kind = NormalizerStep::Kind;
using Symbols = BpeDefinition::Symbols;

Json sequence(const char* list, std::vector<Json> parts) {
  if (parts.empty()) return nullptr;
  if (parts.size() == 1) return parts[0];
  return {{"type", "Sequence"}, {list, parts}};
}

Json normalizer(const BpeDefinition& d) {
  std::vector<Json> parts;
  for (const NormalizerStep& step : d.normalizer) switch (step.kind) {
      case Kind::nfc: parts.push_back({{"type", "NFC"}}); break;
      case Kind::nfd: parts.push_back({{"type", "NFD"}}); break;
      case Kind::nfkc: parts.push_back({{"type", "NFKC"}}); break;
      case Kind::nfkd: parts.push_back({{"type", "NFKD"}}); break;
      case Kind::prepend: parts.push_back({{"type", "Prepend"}, {"prepend", step.to}}); break;
      case Kind::replace:
        parts.push_back({{"type", "Replace"}, {"pattern", {{"String", step.from}}}, {"content", step.to}});
    }
  return sequence("normalizers", parts);
}

Json split(const SplitRule& rule) {
  static const char* const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext",
                                      "Contiguous"};
  return {{"type", "Split"},
          {"pattern", {{rule.literal ? "String" : "Regex", rule.pattern}}},
          {"behavior", names[static_cast<int>(rule.keep)]},
          {"invert", rule.invert}};
}

Json pre_tokenizer(const BpeDefinition& d) {
  std::vector<Json> parts;
  std::vector<SplitRule> splits = d.splits;
  if (d.metaspace) {
    static const char* const schemes[] = {"never", "first", "always"};
    const SplitRule own{.pattern = "▁", .literal = true, .keep = Keep::merged_with_next};
    const bool is_split = !splits.empty() && splits[0] == own;
    if (is_split) splits.erase(splits.begin());
    parts.push_back({{"type", "Metaspace"},
                     {"replacement", "▁"},
                     {"prepend_scheme", schemes[static_cast<int>(*d.metaspace)]},
                     {"split", is_split}});
  }
  const bool use_regex = splits.size() == 1 && splits[0] == SplitRule{.pattern = gpt2_pattern};
  if (!use_regex)
    for (const SplitRule& rule : splits) parts.push_back(split(rule));
  if (d.symbols == Symbols::bytes)
    parts.push_back({{"type", "ByteLevel"},
                     {"add_prefix_space", d.add_prefix_space},
                     {"trim_offsets", true},
                     {"use_regex", use_regex}});
  return sequence("pretokenizers", parts);
}

Json decoder(const BpeDefinition& d) {
  if (d.symbols == Symbols::bytes)
    return {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  std::vector<Json> parts = {{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
                             {{"type", "ByteFallback"}},
                             {{"type", "Fuse"}}};
  if (d.drop_first_space) parts.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return sequence("decoders", parts);
}

Json post_processor(const BpeDefinition& d) {
  if (!d.bos_id) return nullptr;
  const std::string& bos = d.tokens[*d.bos_id];
  const Json first = {{"SpecialToken", {{"id", bos}, {"type_id", 0}}}};
  const auto text = [](const char* id, int type) {
    return Json{{"Sequence", {{"id", id}, {"type_id", type}}}};
  };
  const Json second = {{"SpecialToken", {{"id", bos}, {"type_id", 1}}}};
  return {{"type", "TemplateProcessing"},
          {"single", Json::array({first, text("A", 0)})},
          {"pair", Json::array({first, text("A", 0), second, text("B", 1)})},
          {"special_tokens",
           {{bos, {{"id", bos}, {"ids", Json::array({*d.bos_id})}, {"tokens", Json::array({bos})}}}}}};
}

Json model(const BpeDefinition& d) {
  std::vector<std::string> spelled;
  for (const std::string& token : d.tokens)
    spelled.push_back(d.symbols == Symbols::bytes ? to_byte_alphabet(token) : token);
  for (const AddedToken& t : d.added) spelled[t.id] = t.in_vocabulary ? t.content : "";
  Json::object_t vocab;
  for (size_t id = 0; id < spelled.size(); ++id)
    if (!spelled[id].empty()) vocab.push_back({spelled[id], id});
  Json merges = Json::array();
  for (const auto& [a, b] : d.merges) {
    if (d.symbols == Symbols::bytes)
      merges.push_back(spelled[a] + " " + spelled[b]);
    else
      merges.push_back(Json::array({spelled[a], spelled[b]}));
  }
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", d.symbols == Symbols::characters},
          {"ignore_merges", d.ignore_merges},
          {"vocab", std::move(vocab)},
          {"merges", std::move(merges)}};
}

Json added_tokens(const BpeDefinition& d) {
  Json list = Json::array();
  for (const AddedToken& t : d.added)
    list.push_back({{"id", t.id},
                    {"content", t.content},
                    {"single_word", false},
                    {"lstrip", t.lstrip},
                    {"rstrip", t.rstrip},
                    {"normalized", t.normalized},
                    {"special", t.special}});
  return list;
}

void write_file(const std::filesystem::path& path, const Json& content) {
  const std::filesystem::path unfinished = path.string() + ".tmp";
  std::ofstream file(unfinished);
  if (!file) throw Error(Exit::cannot_create, "cannot create " + unfinished.string());
  file << content.dump(2) << '\n';
  file.close();
  std::error_code failed;
  if (file) std::filesystem::rename(unfinished, path, failed);
  if (!file || failed) throw Error(Exit::io, "cannot write " + path.string(), failed.message());
}

}  // namespace

void write_tokenizer_json(const BpeDefinition& d, const std::string& folder) {
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  if (failed) throw Error(Exit::cannot_create, "cannot create the folder " + folder, failed.message());
  write_file(std::filesystem::path(folder) / "tokenizer.json", {{"version", "1.0"},
                                                                {"truncation", nullptr},
                                                                {"padding", nullptr},
                                                                {"added_tokens", added_tokens(d)},
                                                                {"normalizer", normalizer(d)},
                                                                {"pre_tokenizer", pre_tokenizer(d)},
                                                                {"post_processor", post_processor(d)},
                                                                {"decoder", decoder(d)},
                                                                {"model", model(d)}});
  Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"clean_up_tokenization_spaces", false},
                 {"eos_token", d.tokens[d.eos_id]}};
  if (d.bos_id) config["bos_token"] = d.tokens[*d.bos_id];
  write_file(std::filesystem::path(folder) / "tokenizer_config.json", config);
}

}  // namespace weft
