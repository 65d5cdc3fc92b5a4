#pragma once
// What ranks say to each other. One Communicator a rank and group; used from one thread, collectives in the
// same order on every rank. The public functions check, count and fingerprint; a transport overrides the
// protected ones.
//
// Sums do not depend on arrival: parts are added along a binary tree over the ranks, ((0+1)+(2+3))+..., bf16
// in f32 with one rounding at the end. NaN wins a maximum, so that a bad number on one rank is seen by all.
//
// Bytes are what this rank has to send to *other* ranks, whatever the transport does:
//   all_gather (P-1)·own · reduce_scatter all-own · all_reduce = reduce_scatter + all_gather of slices
//   [rP⁻¹n, (r+1)P⁻¹n) all_to_all sent-own · send, send_recv: sent · broadcast: (P-1)·n at the root.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/check.h"
#include "autograd/dtype.h"

namespace weft {

enum class Reduce : uint8_t { sum, max };

// Bytes sent by one rank; the first four are the `wire` key of docs/contract.md.
struct WireBytes {
  int64_t all_gather = 0;
  int64_t reduce_scatter = 0;
  int64_t send_recv = 0;
  int64_t all_to_all = 0;
  int64_t broadcast = 0;

  WireBytes& operator+=(const WireBytes& other);
  friend WireBytes operator-(WireBytes a, const WireBytes& b);
  friend bool operator==(const WireBytes&, const WireBytes&) = default;
};

constexpr int nobody = -1;  // no partner in send_recv

// The part of n elements that rank owns when ranks share them evenly: [begin, end).
struct Slice {
  int64_t begin, end;
};
constexpr Slice slice_of(int64_t n, int rank, int ranks) {
  return {n * rank / ranks, n * (rank + 1) / ranks};
}

class Communicator {
 public:
  Communicator(int rank, int size) : rank_(rank), size_(size) {}
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  virtual const char* name() const = 0;  // self, threads, mpi

  // `tag` names the operation in messages; all ranks pass the same one. Counts are elements. Where a rank's
  // own part already lies in its place in the output, the two pointers may coincide; other overlaps are not
  // allowed.

  // data[i] = sum or maximum over ranks of data[i]
  void all_reduce(void* data, int64_t count, Dtype dtype, Reduce op = Reduce::sum, std::string_view tag = {});

  // all = the parts of rank 0, 1, ..., one after another; every rank knows all counts.
  void all_gather(const void* mine, void* all, int64_t count, Dtype dtype, std::string_view tag = {});
  void all_gather_v(const void* mine, void* all, std::span<const int64_t> counts, Dtype dtype,
                    std::string_view tag = {});

  // mine = part `rank` of the sum (maximum) over ranks of `all`. The adjoint of all_gather.
  void reduce_scatter(const void* all, void* mine, int64_t count, Dtype dtype, Reduce op = Reduce::sum,
                      std::string_view tag = {});
  void reduce_scatter_v(const void* all, void* mine, std::span<const int64_t> counts, Dtype dtype,
                        Reduce op = Reduce::sum, std::string_view tag = {});

  // Part s of `out` goes to rank s; part s of `in` comes from rank s. sent[s] here equals received[rank]
  // there.
  void all_to_all(const void* out, void* in, int64_t count, Dtype dtype, std::string_view tag = {});
  void all_to_all_v(const void* out, std::span<const int64_t> sent, void* in,
                    std::span<const int64_t> received, Dtype dtype, std::string_view tag = {});

  void broadcast(void* data, int64_t count, Dtype dtype, int root, std::string_view tag = {});

  // send returns when data may be reused and never waits for the receiver. Messages of a pair arrive in
  // order.
  void send(const void* data, int64_t count, Dtype dtype, int to, std::string_view tag = {});
  void recv(void* data, int64_t count, Dtype dtype, int from, std::string_view tag = {});
  // Both at once; cannot deadlock. `to` or `from` may be `nobody`.
  void send_recv(const void* out, int64_t out_count, int to, void* in, int64_t in_count, int from,
                 Dtype dtype, std::string_view tag = {});

  void barrier(std::string_view tag = {});

  // The ranks of one color form a group, ordered by (key, rank). A negative color gets nullptr. Collective.
  std::unique_ptr<Communicator> split(int color, int key);

  // This rank cannot go on; culprit is the rank at fault, this one or another. The others are released with
  // an Error (peer_lost) that names it, or ended. Does not return where the ranks are processes.
  virtual void leave(Exit code, int culprit, const std::string& what) = 0;

  // Whether this rank is to say what went wrong: true on one rank of each machine, so that one failure is one
  // line.
  virtual bool first_to_say() { return true; }

  // Called once, by leave() or when a dead peer is noticed, just before this process ends; may run on another
  // thread.
  using OnLeave = std::function<void(Exit code, int culprit, const std::string& what)>;
  void on_leave(OnLeave callback);

  // This rank still makes progress. What was last said is in the message when a rank hangs or dies.
  virtual void beat(int64_t /*step*/, const char* /*phase*/) {}
  virtual void pulse() {}  // a sign of life within long work that other ranks may be waiting for

  const WireBytes& wire() const { return wire_; }

  // A rolling hash of all collectives so far, equal on all ranks of a correct run; cheap, always on.
  uint64_t fingerprint() const { return fingerprint_; }

  // Compare every collective (kind, count, dtype, tag) over the ranks before it runs, and throw on all of
  // them an Error naming the first one that differs and the rank that is alone with it. Inherited by split().
  void check_collectives(bool on) { checked_ = on; }

 protected:
  // The transport, in bytes. Parts lie one after another in rank order; the rank's own part is copied too.
  virtual void move_all_gather(const void* mine, void* all, std::span<const int64_t> bytes) = 0;
  virtual void move_all_to_all(const void* out, std::span<const int64_t> sent, void* in,
                               std::span<const int64_t> received) = 0;
  virtual void move_broadcast(void* data, int64_t bytes, int root) = 0;
  virtual void move_send(const void* data, int64_t bytes, int to) = 0;
  virtual void move_recv(void* data, int64_t bytes, int from) = 0;
  virtual void move_send_recv(const void* out, int64_t out_bytes, int to, void* in, int64_t in_bytes,
                              int from);
  virtual void move_barrier() = 0;
  virtual std::unique_ptr<Communicator> move_split(int color, int key) = 0;
  // Reductions in host memory, built on the moves above; a transport with its own deterministic one overrides
  // them.
  virtual void move_reduce_scatter(const void* all, void* mine, std::span<const int64_t> counts, Dtype dtype,
                                   Reduce op);
  virtual void move_all_reduce(void* data, std::span<const int64_t> slices, Dtype dtype, Reduce op);

  void call_on_leave(Exit code, int culprit, const std::string& what);

 private:
  enum class Kind : uint8_t;
  struct Call;
  void begin(Kind kind, int64_t count, std::span<const int64_t> counts, Dtype dtype, int extra,
             std::string_view tag);
  void compare(const Call& mine);
  void compare_all_to_all(std::span<const int64_t> sent, std::span<const int64_t> received,
                          std::string_view tag);
  void check_rank(int rank, const char* role) const;

  int rank_;
  int size_;
  bool checked_ = false;
  uint64_t fingerprint_ = 14695981039346656037u;
  int64_t calls_ = 0;
  WireBytes wire_;
  std::vector<std::byte> scratch_;
  std::mutex on_leave_mutex_;
  OnLeave on_leave_;
};

// A group of one: everything is a copy.
std::unique_ptr<Communicator> self_communicator();

// A rank of a group that is not there, for plans: bytes are counted, nothing moves, and what others would
// have given stays as it was. It cannot be split.
std::unique_ptr<Communicator> planned_communicator(int rank, int size);

}  // namespace weft
