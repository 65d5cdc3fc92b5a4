#pragma once
// The baseline every language model must beat: an interpolated Kneser-Ney model over five bytes (order 5,
// absolute discounting, one discount an order; Kneser and Ney, "Improved backing-off for m-gram language
// modeling", ICASSP 1995, in the interpolated form of Chen and Goodman, "An empirical study of smoothing
// techniques for language modeling", Computer Speech and Language 13, 1999). The lowest order is uniform over
// the 256 bytes, so nothing is impossible.

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace weft {

class ByteNgram {
 public:
  // Once so many distinct five-byte strings are counted, further text is left out: all tables then stay below
  // a gigabyte even for noise. 4 MB of English hold about a third of a million.
  static constexpr size_t max_grams = size_t{1} << 22;

  // Counts a document. Contexts do not reach over its start.
  void train(std::string_view document);
  // -log2 P(document), in bits. The first call after train() builds the tables.
  double bits(std::string_view document);

 private:
  static constexpr int order = 5;
  using Key = uint64_t;  // the last n bytes, the newest lowest
  struct Grams {         // of one length, sorted by key
    std::vector<std::pair<Key, uint64_t>> counts;
    struct Context {
      Key key;
      uint64_t total, kinds;  // sum of the counts that follow it, and how many different bytes
    };
    std::vector<Context> contexts;
    double discount = 0;
  };

  void merge_pending();
  void build();

  std::vector<Key> pending_;
  std::array<Grams, order> grams_;  // [n - 1]: n bytes
  bool built_ = false;
};

}  // namespace weft
