#include "distributed/agree.h"

#include <algorithm>
#include <numeric>

#include "autograd/rank_error.h"

namespace weft {
namespace {

// all_gather only moves bytes, so any eight of them may travel as f64.
template <class T>
std::vector<T> gather_eight(Communicator* comm, T mine) {
  static_assert(sizeof(T) == sizeof(double));
  if (comm == nullptr) return {mine};
  std::vector<T> all(comm->size());
  comm->all_gather(&mine, all.data(), 1, Dtype::f64, "agree");
  return all;
}

// The line in which a value first differs from another: of a recipe, the key in question.
std::string_view differing_line(std::string_view value, std::string_view other) {
  const auto at = static_cast<size_t>(
      std::mismatch(value.begin(), value.end(), other.begin(), other.end()).first - value.begin());
  const size_t newline = at == 0 ? std::string_view::npos : value.rfind('\n', at - 1);
  size_t begin = newline == std::string_view::npos ? 0 : newline + 1;
  while (begin < at && value[begin] == ' ') ++begin;
  return value.substr(begin, value.find('\n', at) - begin);
}

std::string shortened(std::string_view value) {
  return value.size() <= 60 ? std::string(value) : std::string(value.substr(0, 57)) + "...";
}

}  // namespace

int rank_of(const Communicator* comm) { return comm == nullptr ? 0 : comm->rank(); }
int size_of(const Communicator* comm) { return comm == nullptr ? 1 : comm->size(); }

std::vector<int64_t> gather_values(Communicator* comm, int64_t mine) { return gather_eight(comm, mine); }
std::vector<double> gather_values(Communicator* comm, double mine) { return gather_eight(comm, mine); }

std::vector<std::string> gather_texts(Communicator* comm, std::string_view mine) {
  if (comm == nullptr) return {std::string(mine)};
  // Padded to whole i32, the smallest type that does not round.
  const std::vector<int64_t> lengths = gather_values(comm, std::ssize(mine));
  std::vector<int64_t> words(lengths.size());
  std::transform(lengths.begin(), lengths.end(), words.begin(), [](int64_t n) { return (n + 3) / 4; });
  std::vector<int32_t> own(words[comm->rank()]), all(std::accumulate(words.begin(), words.end(), int64_t{0}));
  std::copy(mine.begin(), mine.end(), reinterpret_cast<char*>(own.data()));
  comm->all_gather_v(own.data(), all.data(), words, Dtype::i32, "agree");
  std::vector<std::string> texts;
  const int32_t* from = all.data();
  for (size_t r = 0; r < lengths.size(); from += words[r++])
    texts.emplace_back(reinterpret_cast<const char*>(from), lengths[r]);
  return texts;
}

int64_t sum_over_ranks(Communicator* comm, int64_t mine) {
  const auto all = gather_values(comm, mine);
  return std::accumulate(all.begin(), all.end(), int64_t{0});
}

int64_t max_over_ranks(Communicator* comm, int64_t mine) {
  const auto all = gather_values(comm, mine);
  return *std::max_element(all.begin(), all.end());
}

bool any_rank(Communicator* comm, bool mine) { return max_over_ranks(comm, mine) != 0; }
bool all_ranks(Communicator* comm, bool mine) { return !any_rank(comm, !mine); }

void require_same(Communicator* comm, const std::string& field, std::string_view value, Exit code) {
  const std::vector<std::string> all = gather_texts(comm, value);
  const auto odd = std::find_if(all.begin(), all.end(), [&](const std::string& v) { return v != all[0]; });
  if (odd == all.end()) return;
  const auto rank = static_cast<int>(odd - all.begin());
  throw RankError(rank, Error(code,
                              text("ranks do not agree on ", field, ": rank ", rank, " has '",
                                   shortened(differing_line(*odd, all[0])), "', rank 0 has '",
                                   shortened(differing_line(all[0], *odd)), "'"),
                              field, "start all ranks with the same program, recipe and data"));
}

}  // namespace weft
