#include "distributed/thread_comm.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <numeric>
#include <optional>
#include <thread>

#include "distributed/copy_bytes.h"

namespace weft {
namespace {

int64_t sum(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

// What all groups of one run_ranks share: one lock, and how the first failure reaches every waiting thread.
struct Job {
  std::mutex mutex;
  std::condition_variable changed;
  std::chrono::seconds patience;
  std::exception_ptr cause;
  int culprit = nobody;
  std::string why;
  std::vector<bool> finished;         // by rank of the whole job
  std::vector<const char*> waits_in;  // what a rank waits in, or nullptr

  void fail(int rank, std::exception_ptr error, std::string what) {  // mutex held
    if (culprit != nobody) return;
    culprit = rank;
    cause = std::move(error);
    why = std::move(what);
    changed.notify_all();
  }

  // Waits until ready() or until some rank fails, or one in `partners` has finished. mutex held.
  template <class Ready>
  void wait(std::unique_lock<std::mutex>& lock, int self, const char* what, std::span<const int> partners,
            Ready ready) {
    waits_in[self] = what;
    const auto over = [&] {
      return culprit != nobody ||
             std::any_of(partners.begin(), partners.end(), [&](int r) { return finished[r]; });
    };
    // system_clock: TSan does not know the call behind steady_clock waits in every supported libstdc++.
    const auto limit = std::chrono::system_clock::now() + patience;
    const bool in_time = changed.wait_until(lock, limit, [&] { return ready() || over(); });
    if (ready()) {  // wins over a failure: what all ranks reached is complete
      waits_in[self] = nullptr;
      return;
    }
    if (culprit == nobody && in_time) {
      const int gone = *std::find_if(partners.begin(), partners.end(), [&](int r) { return finished[r]; });
      Error error(Exit::peer_lost,
                  text("rank ", gone, " returned while rank ", self, " waits for it in ", what));
      fail(self, std::make_exception_ptr(error), error.what());
      throw error;
    }
    if (culprit == nobody) {
      std::string all;
      for (size_t r = 0; r < waits_in.size(); ++r)
        all += text(r ? ", " : "", "rank ", r,
                    waits_in[r] ? text(" in ", waits_in[r]) : std::string(" computes"));
      Error error(Exit::hang, text("nothing moved for ", patience.count(), " s: ", all));
      fail(self, std::make_exception_ptr(error), error.what());
      throw error;
    }
    throw Error(Exit::peer_lost, text("rank ", culprit, " failed: ", why));
  }
};

// One group's meeting place.
struct Board {
  struct Post {
    const std::byte* data = nullptr;
    std::span<const int64_t> counts;
    int color = 0, key = 0;
  };

  Board(std::shared_ptr<Job> shared, std::vector<int> ranks)
      : job(std::move(shared)),
        members(std::move(ranks)),
        posts(members.size()),
        mail(members.size() * members.size()) {}

  std::shared_ptr<Job> job;
  std::vector<int> members;  // ranks of the whole job
  std::vector<Post> posts;
  std::vector<std::deque<std::vector<std::byte>>> mail;  // [from · size + to]
  std::map<int, std::shared_ptr<Board>> children;        // by color, during split
  int arrived = 0;
  int64_t round = 0;
};

class ThreadComm final : public Communicator {
 public:
  ThreadComm(std::shared_ptr<Board> board, int rank)
      : Communicator(rank, static_cast<int>(board->members.size())), board_(std::move(board)) {}

  const char* name() const override { return "threads"; }

  void leave(Exit code, int culprit, const std::string& what) override {
    call_on_leave(code, culprit, what);
    const std::lock_guard lock(job().mutex);
    job().fail(culprit, std::make_exception_ptr(Error(code, what)), what);
  }

 protected:
  // Between the two meetings every rank reads what the others posted and nobody can fail, so no buffer goes
  // away under a reader; a mismatch is thrown after the second.
  template <class Read>
  void exchange(const char* what, Board::Post post, Read read) {
    board_->posts[rank()] = post;
    meet(what);
    const std::string mismatch = read();
    meet(what);
    if (!mismatch.empty()) throw Error(Exit::internal, mismatch);
  }

  void move_all_gather(const void* mine, void* all, std::span<const int64_t> bytes) override {
    exchange("all_gather", {static_cast<const std::byte*>(mine), bytes, 0, 0}, [&]() -> std::string {
      auto* to = static_cast<std::byte*>(all);
      for (int r = 0; r < size(); to += bytes[r++]) {
        const Board::Post& post = board_->posts[r];
        if (!std::equal(bytes.begin(), bytes.end(), post.counts.begin(), post.counts.end()))
          return text("all_gather: rank ", rank(), " and rank ", r, " do not agree on the counts");
        copy_bytes(to, post.data, bytes[r]);
      }
      return {};
    });
  }

  void move_all_to_all(const void* out, std::span<const int64_t> sent, void* in,
                       std::span<const int64_t> received) override {
    exchange("all_to_all", {static_cast<const std::byte*>(out), sent, 0, 0}, [&]() -> std::string {
      auto* to = static_cast<std::byte*>(in);
      for (int r = 0; r < size(); to += received[r++]) {
        const Board::Post& post = board_->posts[r];
        if (std::ssize(post.counts) != size() || post.counts[rank()] != received[r])
          return text("all_to_all: rank ", rank(), " expects ", received[r], " bytes from rank ", r,
                      ", which sends another number");
        copy_bytes(to, post.data + sum(post.counts.first(rank())), received[r]);
      }
      return {};
    });
  }

  void move_broadcast(void* data, int64_t bytes, int root) override {
    exchange("broadcast", {static_cast<const std::byte*>(data), {&bytes, 1}, 0, 0}, [&]() -> std::string {
      const Board::Post& post = board_->posts[root];
      if (post.counts[0] != bytes)
        return text("broadcast: ranks ", rank(), " and ", root, " do not agree on the count");
      copy_bytes(data, post.data, bytes);
      return {};
    });
  }

  void move_send(const void* data, int64_t bytes, int to) override {
    std::vector<std::byte> letter(static_cast<size_t>(bytes));
    copy_bytes(letter.data(), data, bytes);
    const std::lock_guard lock(job().mutex);
    board_->mail[rank() * size() + to].push_back(std::move(letter));
    job().changed.notify_all();
  }

  void move_recv(void* data, int64_t bytes, int from) override {
    std::vector<std::byte> letter;
    {
      std::unique_lock lock(job().mutex);
      auto& box = board_->mail[from * size() + rank()];
      job().wait(lock, self(), "recv", {&board_->members[from], 1}, [&] { return !box.empty(); });
      letter = std::move(box.front());
      box.pop_front();
    }
    CHECK(std::ssize(letter) == bytes, "recv: rank ", rank(), " expects ", bytes, " bytes from rank ", from,
          ", got ", letter.size());
    copy_bytes(data, letter.data(), bytes);
  }

  void move_barrier() override { meet("barrier"); }

  std::unique_ptr<Communicator> move_split(int color, int key) override {
    board_->posts[rank()] = {nullptr, {}, color, key};
    meet("split");
    std::vector<int> group;  // ranks of this board
    for (int r = 0; r < size(); ++r)
      if (board_->posts[r].color == color) group.push_back(r);
    std::stable_sort(group.begin(), group.end(),
                     [&](int a, int b) { return board_->posts[a].key < board_->posts[b].key; });
    const int place = static_cast<int>(std::find(group.begin(), group.end(), rank()) - group.begin());
    std::shared_ptr<Board> child;
    if (color >= 0) {
      std::vector<int> members;
      for (int r : group) members.push_back(board_->members[r]);
      const std::lock_guard lock(job().mutex);
      auto& slot = board_->children[color];
      if (!slot) slot = std::make_shared<Board>(board_->job, members);
      child = slot;
    }
    meet("split");
    if (rank() == 0) board_->children.clear();
    meet("split");
    return child ? std::make_unique<ThreadComm>(child, place) : nullptr;
  }

 private:
  Job& job() { return *board_->job; }
  int self() const { return board_->members[rank()]; }

  void meet(const char* what) {
    std::unique_lock lock(job().mutex);
    const int64_t round = board_->round;
    if (++board_->arrived == size()) {
      board_->arrived = 0;
      ++board_->round;
      job().changed.notify_all();
      return;
    }
    job().wait(lock, self(), what, board_->members, [&] { return board_->round != round; });
  }

  std::shared_ptr<Board> board_;
};

std::string message_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception of unknown type";
  }
}

}  // namespace

void run_ranks(int ranks, const std::function<void(Communicator&)>& body, std::chrono::seconds patience) {
  CHECK(ranks > 0, "run_ranks: ", ranks, " ranks");
  const auto job = std::make_shared<Job>();
  job->patience = patience;
  job->finished.resize(ranks);
  job->waits_in.resize(ranks);
  std::vector<int> members(ranks);
  std::iota(members.begin(), members.end(), 0);
  const auto board = std::make_shared<Board>(job, members);

  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] {
      std::exception_ptr error;
      try {
        ThreadComm comm(board, rank);
        body(comm);
      } catch (...) {
        error = std::current_exception();
      }
      const std::lock_guard lock(job->mutex);
      if (error) job->fail(rank, error, message_of(error));
      job->finished[rank] = true;
      job->changed.notify_all();
    });
  for (std::thread& thread : threads) thread.join();
  if (job->cause) std::rethrow_exception(job->cause);
}

}  // namespace weft
