#pragma once
// Endless simple English stories from a small grammar, in the manner of TinyStories (Eldan and Li, 2023,
// arXiv 2305.07759), for tests and for a first run without a network. A story is a pure function of (seed,
// number), the same bytes on every machine. Names, things and places return through a story, so there is
// something to remember.

#include <cstdint>
#include <string>

namespace weft {

// One story, about 500 bytes, without a line end after it.
std::string story(uint64_t seed, int64_t number);

// Stories 0, 1, ... with two blank lines between them, at least `bytes` long: a plain text of many documents.
std::string story_corpus(uint64_t seed, int64_t bytes);

}  // namespace weft
