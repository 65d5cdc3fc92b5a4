#include "training/data/stories.h"

#include <array>
#include <map>
#include <string_view>
#include <vector>

#include "autograd/check.h"
#include "autograd/philox.h"

namespace weft {

namespace {

using Choices = std::vector<std::string_view>;

// {name} is replaced by one of its choices; a name in `kept` stays the same for the whole story. A leading
// capital, {Hero}, asks for one in the text; {a thing} puts the article that fits before it.
const std::map<std::string_view, Choices>& grammar() {
  static const std::map<std::string_view, Choices> rules = {
      {"story",
       {"{opening} {wish}\n{trouble} {feeling}\n{help} {try}\n{ending} {moral}",
        "{opening}\n{wish} {trouble} {feeling}\n{help} {talk} {try} {ending}\n{moral}",
        "{opening} {walk}\n{trouble} {feeling}\n{help} {talk} {ending} {moral}"}},
      {"boy", {"Tom", "Ben", "Sam", "Max", "Leo", "Finn", "Jack", "Oscar"}},
      {"girl", {"Lily", "Mia", "Anna", "Sue", "Rose", "Ella", "Ivy", "Nora"}},
      {"trait", {"little", "kind", "brave", "curious", "happy", "shy", "clever", "quiet"}},
      {"helper", {"owl", "dog", "frog", "old man", "rabbit", "bird", "squirrel", "turtle", "fox", "baker"}},
      {"thing",
       {"{color} ball", "{color} kite", "{color} hat", "wooden boat", "{color} umbrella", "tiny bell",
        "warm scarf", "silver key", "toy train", "orange apple", "soft bear", "{color} balloon"}},
      {"color", {"red", "blue", "green", "yellow", "purple", "white"}},
      {"place", {"park", "forest", "garden", "river", "beach", "hill", "farm", "market"}},
      {"weather", {"sunny", "windy", "rainy", "cold", "warm", "cloudy"}},
      {"opening",
       {"Once upon a time, there was {a trait} {child} named {hero}.",
        "One {weather} day, {a trait} {child} named {hero} went to the {place}.",
        "There once was {a trait} {child} called {hero} who lived near the {place}.",
        "{Hero} was {a trait} {child}. {He} loved the {place}."}},
      {"wish",
       {"{Hero} had {a thing}, and {he} took it everywhere.", "{His} favorite toy was {a thing}.",
        "More than anything, {hero} loved {his} {thing}.",
        "For {his} birthday, {hero} got {a thing} from {his} {family}."}},
      {"family", {"mom", "dad", "grandma", "grandpa", "aunt"}},
      {"walk",
       {"{He} went for a walk to the {place} and brought {his} {thing}.",
        "On {a weather} morning, {he} played with {his} {thing} by the {place}."}},
      {"trouble",
       {"But one day, the {thing} was gone!", "Then the {thing} fell into a deep hole.",
        "Suddenly, the wind took the {thing} up into a tall tree.",
        "At the {place}, {he} could not find {his} {thing}.",
        "Then the {thing} broke, and {hero} did not know why."}},
      {"feeling",
       {"{Hero} felt very sad.", "{He} sat down and began to cry.", "{Hero} was {a mood} {child} now.",
        "{He} looked and looked, but it was no use."}},
      {"mood", {"sad", "worried", "unhappy", "lonely"}},
      {"help",
       {"{A trait2} {helper} came by and asked, \"What is wrong, {hero}?\"",
        "Just then, {hero} met {a helper}. \"Can I help you?\" asked the {helper}.",
        "The {helper} saw {him} and said, \"Do not worry, {hero}. We can do it together.\""}},
      {"trait2", {"friendly", "gentle", "old", "wise", "small", "funny"}},
      {"talk",
       {"\"I want my {thing} back,\" said {hero}.", "\"Please help me with my {thing},\" {he} said.",
        "{Hero} told the {helper} about the {thing}."}},
      {"try",
       {"They looked under every stone near the {place}.",
        "The {helper} had a good idea, and {hero} listened.",
        "First they tried to {act}, but that did not work. Then they tried to {act}, and it did!",
        "Together they walked all the way to the {place}."}},
      {"act", {"jump", "climb", "dig", "pull", "push", "sing", "wait", "use a long stick"}},
      {"ending",
       {"At last, the {helper} found the {thing}! {Hero} was so happy that {he} gave the {helper} a big hug.",
        "Soon {hero} had {his} {thing} again, and {he} said, \"Thank you, {helper}!\"",
        "In the end, {hero} and the {helper} shared the {thing} and became best friends."}},
      {"moral",
       {"From that day on, {hero} and the {helper} played at the {place} every day.",
        "{Hero} learned that it is good to ask for help.", "And {hero} never lost {his} {thing} again.",
        "{He} went home and told {his} {family} all about it.", "They all lived happily ever after."}},
  };
  return rules;
}

constexpr std::array<std::string_view, 4> kept = {"trait", "helper", "thing", "place"};

class Teller {
 public:
  Teller(uint64_t seed, int64_t number)
      : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32) ^ stream_of("data.story")},
        number_(number) {
    const bool girl = draw(2) == 1;
    bound_["child"] = girl ? "girl" : "boy";
    bound_["hero"] = expand(pick(girl ? "girl" : "boy"));
    bound_["he"] = girl ? "she" : "he";
    bound_["his"] = girl ? "her" : "his";
    bound_["him"] = girl ? "her" : "him";
    for (const std::string_view name : kept) bound_[std::string(name)] = expand(pick(name));
  }

  std::string tell() { return expand(pick("story")); }

 private:
  uint32_t draw(uint32_t choices) {
    const auto n = static_cast<uint64_t>(number_);
    const uint32_t bits =
        philox({draws_++, static_cast<uint32_t>(n), static_cast<uint32_t>(n >> 32), 0}, key_)[0];
    return static_cast<uint32_t>(uint64_t{bits} * choices >> 32);
  }
  std::string_view pick(std::string_view name) {
    const auto found = grammar().find(name);
    CHECK(found != grammar().end(), "story: no rule named ", name);
    return found->second[draw(static_cast<uint32_t>(found->second.size()))];
  }
  // The words for the inside of one pair of braces.
  std::string words(std::string name) {
    const bool capital = name[0] >= 'A' && name[0] <= 'Z';
    if (capital) name[0] = static_cast<char>(name[0] - 'A' + 'a');
    const bool article = name.starts_with("a ");
    if (article) name.erase(0, 2);
    const auto found = bound_.find(name);
    std::string out = found != bound_.end() ? found->second : expand(pick(name));
    if (article)
      out.insert(0, std::string_view("aeiou").find(out[0]) != std::string_view::npos ? "an " : "a ");
    if (capital && out[0] >= 'a' && out[0] <= 'z') out[0] = static_cast<char>(out[0] - 'a' + 'A');
    return out;
  }
  std::string expand(std::string_view rule) {
    std::string out;
    while (!rule.empty()) {
      const size_t open = rule.find('{');
      out += rule.substr(0, open);
      if (open == std::string_view::npos) break;
      const size_t close = rule.find('}', open);
      out += words(std::string(rule.substr(open + 1, close - open - 1)));
      rule.remove_prefix(close + 1);
    }
    return out;
  }

  std::array<uint32_t, 2> key_;
  int64_t number_;
  uint32_t draws_ = 0;
  std::map<std::string, std::string, std::less<>> bound_;
};

}  // namespace

std::string story(uint64_t seed, int64_t number) { return Teller(seed, number).tell(); }

std::string story_corpus(uint64_t seed, int64_t bytes) {
  std::string out;
  for (int64_t number = 0; static_cast<int64_t>(out.size()) < bytes; ++number) {
    if (number > 0) out += "\n\n\n";
    out += story(seed, number);
  }
  return out;
}

}  // namespace weft
