#include "training/tasks/needle.h"

#include <algorithm>
#include <array>
#include <string>

#include "autograd/check.h"
#include "training/data/stories.h"
#include "training/data/tokenizer.h"

namespace weft {
namespace {

constexpr std::array<const char*, 8> kOwners{"owl", "dog", "frog", "fox", "cat", "goat", "hen", "bear"};

using Tokens = std::vector<int32_t>;

std::string sentence(const std::string& owner, const std::string& number) {
  return " The secret number of the " + owner + " is " + number + ". ";
}
std::string question(const std::string& owner) { return "\nThe secret number of the " + owner + " is"; }

}  // namespace

void NeedleConfig::fields(FieldVisitor& f) {
  f("length", length, "length of an example", {.unit = "tokens", .min = 8, .max = 1e8});
  f("depth", depth, "place of the needle, from 0 (the start) to 100 (the question); -1: anywhere",
    {.unit = "per cent of the text", .min = -1, .max = 100});
  f("digits", digits, "digits of the number", {.min = 1, .max = 9});
  f("needles", needles, "sentences with a number; one of them is asked for",
    {.min = 1, .max = static_cast<double>(kOwners.size())});
}

Needle::Needle(const Config& config, const Tokenizer& tokenizer) : config_(config), tokenizer_(tokenizer) {
  // As long as it can get: of the tokens of a text, fewer than of its bytes.
  const std::string number(static_cast<size_t>(config.digits), '8');
  const size_t longest =
      static_cast<size_t>(config.needles) * tokenizer.encode(sentence("goat", number)).size() +
      tokenizer.encode(question("goat")).size() + tokenizer.encode(" " + number).size() + 8;
  if (longest > static_cast<size_t>(config.length))
    throw Error(Exit::recipe,
                text("needle with ", config.needles, " needles needs a length of ", longest,
                     " tokens, it has ", config.length),
                "length", "make it longer");
}

int64_t Needle::vocab() const { return tokenizer_.vocab_size(); }

Example Needle::make(Draws& draws) const {
  const std::vector<int64_t> owners = draws.choose(config_.needles, static_cast<int64_t>(kOwners.size()));
  std::vector<Tokens> needles;
  std::string asked;  // the number of the first
  for (const int64_t owner : owners) {
    std::string number;
    for (int64_t d = 0; d < config_.digits; ++d) number += static_cast<char>('0' + draws.below(10));
    if (asked.empty()) asked = number;
    needles.push_back(tokenizer_.encode(sentence(kOwners[owner], number)));
  }
  const Tokens ask = tokenizer_.encode(question(kOwners[owners[0]])), answer = tokenizer_.encode(" " + asked);

  // The last token of the answer is a label only.
  int64_t room = config_.length + 1 - static_cast<int64_t>(ask.size() + answer.size());
  for (const Tokens& needle : needles) room -= static_cast<int64_t>(needle.size());
  Tokens hay;
  const uint64_t book = uint64_t{draws.bits()} << 32 | draws.bits();
  for (int64_t number = 0; static_cast<int64_t>(hay.size()) < room; ++number)
    tokenizer_.encode_to(story(book, number) + "\n", SpecialText::plain, hay);
  hay.resize(static_cast<size_t>(room));

  std::vector<std::pair<int64_t, size_t>> places;  // in the hay, of each needle
  for (size_t i = 0; i < needles.size(); ++i) {
    const bool free = i > 0 || config_.depth < 0;
    places.emplace_back(free ? draws.below(room + 1) : room * config_.depth / 100, i);
  }
  std::sort(places.begin(), places.end());
  Tokens whole;
  int64_t at = 0;
  for (const auto& [place, i] : places) {
    whole.insert(whole.end(), hay.begin() + at, hay.begin() + place);
    whole.insert(whole.end(), needles[i].begin(), needles[i].end());
    at = place;
  }
  whole.insert(whole.end(), hay.begin() + at, hay.end());
  whole.insert(whole.end(), ask.begin(), ask.end());
  const size_t answers = whole.size();
  whole.insert(whole.end(), answer.begin(), answer.end());

  Example e;
  e.tokens.assign(whole.begin(), whole.end() - 1);
  e.targets.assign(e.tokens.size(), -1);
  for (size_t i = answers; i < whole.size(); ++i)  // a space before the number is no part of it
    if (tokenizer_.token_bytes(whole[i]) != " ") e.targets[i - 1] = whole[i];
  return e;
}

}  // namespace weft
