#include "training/recipe/yaml.h"

#include <yaml-cpp/anchor.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <set>
#include <sstream>

#include "autograd/check.h"

namespace weft {

namespace {

using Kind = FieldValue::Kind;
using Source = std::shared_ptr<const std::string>;

// Builds the tree from the parser's events: nothing is expanded, so the tree is no larger than the text.
class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(Source source) : source_(std::move(source)) {}

  FieldValue root;

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (documents_++ > 0) refuse(mark, "a second document", "keep one document in a file");
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    FieldValue value = begin(mark, "?", anchor);
    if (expects_key()) refuse(mark, "a key without a name", "write KEY: VALUE");
    put(std::move(value));
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t /*anchor*/) override {
    refuse(mark, "an alias (*name)", "write the value out; a text that begins with * needs quotes");
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& text) override {
    FieldValue value = begin(mark, tag, anchor);
    if (expects_key()) {
      key(text, value.place);
      return;
    }
    value.kind = Kind::text;
    value.text = text;
    value.quoted = tag == "!";
    put(std::move(value));
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, Kind::list);
  }
  void OnSequenceEnd() override { close(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, Kind::map);
  }
  void OnMapEnd() override { close(); }

 private:
  struct Container {
    FieldValue value;
    FieldValue pending;  // holds the key whose value comes next
    bool has_key = false;
    std::set<std::string> keys;
  };

  Place place(const YAML::Mark& mark) const { return {source_, mark.line + 1, mark.column + 1}; }

  [[noreturn]] void refuse(const YAML::Mark& mark, const std::string& what, const std::string& advice) const {
    throw Error(Exit::recipe, what, place(mark).text(), advice);
  }

  bool expects_key() const {
    return !containers_.empty() && containers_.back().value.kind == Kind::map && !containers_.back().has_key;
  }

  FieldValue begin(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) const {
    if (anchor != 0) refuse(mark, "an anchor (&name)", "write the value out where it is used");
    if (!tag.empty() && tag != "?" && tag != "!")
      refuse(mark, "a tag (" + tag + ")", "write the plain value");
    FieldValue value;
    value.place = place(mark);
    return value;
  }

  void key(const std::string& text, const Place& where) {
    Container& map = containers_.back();
    if (!map.keys.insert(text).second)
      throw Error(Exit::recipe, "the key " + shown(text) + " is given twice", where.text(),
                  "keep one of the two");
    map.pending.key = text;
    map.pending.key_place = where;
    map.has_key = true;
  }

  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, Kind kind) {
    FieldValue value = begin(mark, tag, anchor);
    if (expects_key())
      refuse(mark, "a key that is a list or a map", "a key is plain text; close every bracket");
    if (containers_.size() >= static_cast<size_t>(kMaxRecipeDepth))
      refuse(mark, text("more than ", kMaxRecipeDepth, " levels of nesting"), "a recipe needs five at most");
    value.kind = kind;
    containers_.emplace_back();
    containers_.back().value = std::move(value);
  }

  void close() {
    FieldValue value = std::move(containers_.back().value);
    containers_.pop_back();
    put(std::move(value));
  }

  void put(FieldValue value) {
    if (containers_.empty()) {
      root = std::move(value);
      return;
    }
    Container& owner = containers_.back();
    if (owner.value.kind == Kind::map) {
      value.key = std::move(owner.pending.key);
      value.key_place = owner.pending.key_place;
      if (value.kind == Kind::none) value.place = value.key_place;  // the parser is at the next token already
      owner.has_key = false;
    }
    owner.value.items.push_back(std::move(value));
  }

  Source source_;
  int documents_ = 0;
  std::vector<Container> containers_;
};

// Length of the UTF-8 sequence at text[i], or 0 if it is malformed, overlong, a surrogate or past U+10FFFF.
size_t utf8_length(const std::string& text, size_t i) {
  const auto byte = [&](size_t k) { return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u; };
  const unsigned first = byte(i);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xF5 ? 0 : first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : first >= 0xC2 ? 2 : 0;
  for (size_t k = 1; k < length; ++k)
    if ((byte(i + k) & 0xC0) != 0x80) return 0;
  const unsigned second = byte(i + 1);
  if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F)) return 0;
  if ((first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) return 0;
  return length;
}

// The parser reads ahead through open brackets before its first event, so their depth is bounded here.
// Brackets inside quotes and comments count too: an upper bound is enough, recipes have neither in such
// numbers.
void check_brackets(const std::string& text, const Source& source) {
  constexpr int kMaxOpen = 1000;
  int depth = 0, line = 1, column = 0;
  for (char c : text) {
    ++column;
    if (c == '\n') ++line, column = 0;
    if (c == '[' || c == '{') ++depth;
    if ((c == ']' || c == '}') && depth > 0) --depth;
    if (depth > kMaxOpen)
      throw Error(Exit::recipe, "too many open brackets", Place{source, line, column}.text(),
                  "a recipe needs five levels at most");
  }
}

}  // namespace

void check_utf8(const std::string& text, const std::string& source) {
  int line = 1, column = 1;
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const size_t length = utf8_length(text, i);
    const bool control = (byte < 0x20 && byte != '\t' && byte != '\n' && byte != '\r') || byte == 0x7F;
    if (length == 0 || control) {
      const std::string where = Place{std::make_shared<std::string>(source), line, column}.text();
      throw Error(Exit::recipe, control ? "a control character" : "text that is not UTF-8", where,
                  "save the file as UTF-8 text");
    }
    ++column;
    if (byte == '\n') ++line, column = 1;
    i += length;
  }
}

FieldValue parse_yaml(const std::string& text, const std::string& source) {
  if (text.size() > kMaxRecipeBytes)
    throw Error(Exit::recipe, "a recipe of more than 10 MB", source, "point at a recipe, not at data");
  check_utf8(text, source);
  const Source shared = std::make_shared<const std::string>(source);
  check_brackets(text, shared);
  TreeBuilder builder(shared);
  try {
    // The comment makes a quote that is still open an error; without it the parser takes the end for the
    // quote.
    std::istringstream stream(text + (text.empty() || text.back() == '\n' ? "#" : "\n#"));
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    const Place place =
        error.mark.is_null() ? Place{shared} : Place{shared, error.mark.line + 1, error.mark.column + 1};
    throw Error(Exit::recipe, "not YAML: " + error.msg, place.text(),
                "check indentation, quotes and brackets");
  }
  if (builder.root.kind == Kind::none) {
    builder.root.kind = Kind::map;
    builder.root.place = {shared, 1, 1};
  }
  return std::move(builder.root);
}

}  // namespace weft
