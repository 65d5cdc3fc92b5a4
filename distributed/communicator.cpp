#include "distributed/communicator.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "distributed/reduce.h"

namespace weft {

enum class Communicator::Kind : uint8_t {
  all_reduce,
  all_gather,
  reduce_scatter,
  all_to_all,
  broadcast,
  barrier,
  split,
};

namespace {

const char* const kind_names[] = {"all_reduce", "all_gather", "reduce_scatter", "all_to_all",
                                  "broadcast",  "barrier",    "split"};

uint64_t fnv(uint64_t hash, const void* data, size_t bytes) {
  const auto* p = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ p[i]) * 1099511628211u;
  return hash;
}

std::vector<int64_t> times(std::span<const int64_t> counts, int64_t factor) {
  std::vector<int64_t> result(counts.begin(), counts.end());
  for (int64_t& n : result) n *= factor;
  return result;
}

int64_t total(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

}  // namespace

// What must be the same on every rank; compared as bytes, so it has no padding that is not zero.
struct Communicator::Call {
  int64_t number = 0;
  int64_t count = 0;
  uint64_t counts_hash = 0;
  int32_t kind = 0;
  int32_t dtype = 0;
  int32_t extra = 0;  // operator or root
  char tag[44] = {};

  std::string describe() const {
    const bool sized = kind < static_cast<int32_t>(Kind::barrier);
    return text(
        kind_names[kind], sized ? text(" of ", count, " x ", name_of(static_cast<Dtype>(dtype))) : "",
        extra != 0 ? text(kind == static_cast<int32_t>(Kind::broadcast) ? " from " : " op ", extra) : "",
        tag[0] != 0 ? text(" (", tag, ")") : "");
  }
};

WireBytes& WireBytes::operator+=(const WireBytes& other) {
  all_gather += other.all_gather;
  reduce_scatter += other.reduce_scatter;
  send_recv += other.send_recv;
  all_to_all += other.all_to_all;
  broadcast += other.broadcast;
  return *this;
}

WireBytes operator-(WireBytes a, const WireBytes& b) {
  a.all_gather -= b.all_gather;
  a.reduce_scatter -= b.reduce_scatter;
  a.send_recv -= b.send_recv;
  a.all_to_all -= b.all_to_all;
  a.broadcast -= b.broadcast;
  return a;
}

void Communicator::begin(Kind kind, int64_t count, std::span<const int64_t> counts, Dtype dtype, int extra,
                         std::string_view tag) {
  Call call;
  call.number = calls_++;
  call.count = count;
  call.counts_hash = fnv(0, counts.data(), counts.size_bytes());
  call.kind = static_cast<int32_t>(kind);
  call.dtype = static_cast<int32_t>(dtype);
  call.extra = extra;
  std::copy_n(tag.data(), std::min(tag.size(), sizeof(call.tag) - 1), call.tag);
  if (checked_ && size_ > 1) compare(call);
  fingerprint_ = fnv(fingerprint_, &call, sizeof call);
}

void Communicator::compare(const Call& mine) {
  std::vector<Call> all(size_);
  const std::vector<int64_t> bytes(size_, sizeof(Call));
  move_all_gather(&mine, all.data(), bytes);
  const auto same = [](const Call& a, const Call& b) { return std::memcmp(&a, &b, sizeof(Call)) == 0; };
  // The call most ranks make is taken to be the right one; a tie goes to the lower rank.
  int right = 0;
  int64_t votes = 0;
  for (int r = 0; r < size_; ++r) {
    const auto n = std::count_if(all.begin(), all.end(), [&](const Call& c) { return same(c, all[r]); });
    if (n > votes) right = r, votes = n;
  }
  if (votes == size_) return;
  const auto odd = std::find_if(all.begin(), all.end(), [&](const Call& c) { return !same(c, all[right]); });
  const bool counts_only = odd->describe() == all[right].describe();
  throw Error(Exit::internal,
              text("collective ", all[right].number, " differs: rank ", odd - all.begin(), " calls ",
                   odd->describe(), ", rank ", right, " calls ", all[right].describe(),
                   counts_only ? " with other counts or another number of calls before" : ""));
}

// Rows differ from rank to rank, so the whole table of what is sent is compared to what is expected.
void Communicator::compare_all_to_all(std::span<const int64_t> sent, std::span<const int64_t> received,
                                      std::string_view tag) {
  const size_t p = static_cast<size_t>(size_);
  std::vector<int64_t> mine(sent.begin(), sent.end()), all(2 * p * p);
  mine.insert(mine.end(), received.begin(), received.end());
  const std::vector<int64_t> bytes(p, static_cast<int64_t>(2 * p * sizeof(int64_t)));
  move_all_gather(mine.data(), all.data(), bytes);
  for (size_t from = 0; from < p; ++from)
    for (size_t to = 0; to < p; ++to) {
      const int64_t gives = all[from * 2 * p + to], takes = all[to * 2 * p + p + from];
      if (gives != takes)
        throw Error(Exit::internal,
                    text("collective ", calls_ - 1, " differs: all_to_all (", tag, "): rank ", from,
                         " sends ", gives, " elements to rank ", to, ", which expects ", takes));
    }
}

void Communicator::check_rank(int rank, const char* role) const {
  CHECK(rank >= 0 && rank < size_, role, " rank ", rank, " is not one of ", size_, " ranks");
}

void Communicator::all_reduce(void* data, int64_t count, Dtype dtype, Reduce op, std::string_view tag) {
  begin(Kind::all_reduce, count, {}, dtype, static_cast<int>(op), tag);
  if (size_ == 1 || count == 0) return;
  std::vector<int64_t> slices(size_);
  for (int r = 0; r < size_; ++r) slices[r] = slice_of(count, r, size_).end - slice_of(count, r, size_).begin;
  wire_.reduce_scatter += (count - slices[rank_]) * size_of(dtype);
  wire_.all_gather += (size_ - 1) * slices[rank_] * size_of(dtype);
  move_all_reduce(data, slices, dtype, op);
}

void Communicator::all_gather(const void* mine, void* all, int64_t count, Dtype dtype, std::string_view tag) {
  all_gather_v(mine, all, std::vector<int64_t>(size_, count), dtype, tag);
}

void Communicator::all_gather_v(const void* mine, void* all, std::span<const int64_t> counts, Dtype dtype,
                                std::string_view tag) {
  CHECK(std::ssize(counts) == size_, "all_gather: ", counts.size(), " counts for ", size_, " ranks");
  begin(Kind::all_gather, total(counts), counts, dtype, 0, tag);
  if (total(counts) == 0) return;
  wire_.all_gather += (size_ - 1) * counts[rank_] * size_of(dtype);
  move_all_gather(mine, all, times(counts, size_of(dtype)));
}

void Communicator::reduce_scatter(const void* all, void* mine, int64_t count, Dtype dtype, Reduce op,
                                  std::string_view tag) {
  reduce_scatter_v(all, mine, std::vector<int64_t>(size_, count), dtype, op, tag);
}

void Communicator::reduce_scatter_v(const void* all, void* mine, std::span<const int64_t> counts, Dtype dtype,
                                    Reduce op, std::string_view tag) {
  CHECK(std::ssize(counts) == size_, "reduce_scatter: ", counts.size(), " counts for ", size_, " ranks");
  begin(Kind::reduce_scatter, total(counts), counts, dtype, static_cast<int>(op), tag);
  if (total(counts) == 0) return;
  wire_.reduce_scatter += (total(counts) - counts[rank_]) * size_of(dtype);
  move_reduce_scatter(all, mine, counts, dtype, op);
}

void Communicator::all_to_all(const void* out, void* in, int64_t count, Dtype dtype, std::string_view tag) {
  const std::vector<int64_t> counts(size_, count);
  all_to_all_v(out, counts, in, counts, dtype, tag);
}

void Communicator::all_to_all_v(const void* out, std::span<const int64_t> sent, void* in,
                                std::span<const int64_t> received, Dtype dtype, std::string_view tag) {
  CHECK(std::ssize(sent) == size_ && std::ssize(received) == size_, "all_to_all: ", sent.size(), " and ",
        received.size(), " counts for ", size_, " ranks");
  begin(Kind::all_to_all, 0, {}, dtype, 0, tag);
  if (checked_ && size_ > 1) compare_all_to_all(sent, received, tag);
  wire_.all_to_all += (total(sent) - sent[rank_]) * size_of(dtype);
  move_all_to_all(out, times(sent, size_of(dtype)), in, times(received, size_of(dtype)));
}

void Communicator::broadcast(void* data, int64_t count, Dtype dtype, int root, std::string_view tag) {
  check_rank(root, "broadcast: root");
  begin(Kind::broadcast, count, {}, dtype, root, tag);
  if (size_ == 1 || count == 0) return;
  if (rank_ == root) wire_.broadcast += (size_ - 1) * count * size_of(dtype);
  move_broadcast(data, count * size_of(dtype), root);
}

void Communicator::send(const void* data, int64_t count, Dtype dtype, int to, std::string_view tag) {
  check_rank(to, "send: receiving");
  CHECK(to != rank_, "send: rank ", rank_, " sends to itself ", tag);
  wire_.send_recv += count * size_of(dtype);
  move_send(data, count * size_of(dtype), to);
}

void Communicator::recv(void* data, int64_t count, Dtype dtype, int from, std::string_view tag) {
  check_rank(from, "recv: sending");
  CHECK(from != rank_, "recv: rank ", rank_, " receives from itself ", tag);
  move_recv(data, count * size_of(dtype), from);
}

void Communicator::send_recv(const void* out, int64_t out_count, int to, void* in, int64_t in_count, int from,
                             Dtype dtype, std::string_view tag) {
  if (to == nobody && from == nobody) return;
  if (to == nobody) return recv(in, in_count, dtype, from, tag);
  if (from == nobody) return send(out, out_count, dtype, to, tag);
  check_rank(to, "send_recv: receiving");
  check_rank(from, "send_recv: sending");
  if (to == rank_ || from == rank_) {
    CHECK(to == from && out_count == in_count, "send_recv: rank ", rank_,
          " exchanges with itself and another ", tag);
    if (in != out && in_count > 0) std::memcpy(in, out, in_count * size_of(dtype));
    return;
  }
  wire_.send_recv += out_count * size_of(dtype);
  move_send_recv(out, out_count * size_of(dtype), to, in, in_count * size_of(dtype), from);
}

void Communicator::barrier(std::string_view tag) {
  begin(Kind::barrier, 0, {}, Dtype::i32, 0, tag);
  if (size_ > 1) move_barrier();
}

std::unique_ptr<Communicator> Communicator::split(int color, int key) {
  begin(Kind::split, 0, {}, Dtype::i32, 0, {});
  auto group = move_split(color, key);
  if (group) group->checked_ = checked_;
  return group;
}

void Communicator::on_leave(OnLeave callback) {
  const std::lock_guard lock(on_leave_mutex_);
  on_leave_ = std::move(callback);
}

void Communicator::call_on_leave(Exit code, int culprit, const std::string& what) {
  const std::lock_guard lock(on_leave_mutex_);
  if (const auto callback = std::exchange(on_leave_, nullptr)) callback(code, culprit, what);
}

void Communicator::move_send_recv(const void* out, int64_t out_bytes, int to, void* in, int64_t in_bytes,
                                  int from) {
  move_send(out, out_bytes, to);
  move_recv(in, in_bytes, from);
}

void Communicator::move_reduce_scatter(const void* all, void* mine, std::span<const int64_t> counts,
                                       Dtype dtype, Reduce op) {
  const int64_t own = counts[rank_];
  scratch_.resize(std::max<size_t>(scratch_.size(), static_cast<size_t>(size_ * own * size_of(dtype))));
  move_all_to_all(all, times(counts, size_of(dtype)), scratch_.data(),
                  std::vector<int64_t>(size_, own * size_of(dtype)));
  reduce_over_ranks(mine, scratch_.data(), size_, own, dtype, op);
}

void Communicator::move_all_reduce(void* data, std::span<const int64_t> slices, Dtype dtype, Reduce op) {
  auto* mine = static_cast<std::byte*>(data) + total(slices.first(rank_)) * size_of(dtype);
  move_reduce_scatter(data, mine, slices, dtype, op);
  move_all_gather(mine, data, times(slices, size_of(dtype)));
}

}  // namespace weft
