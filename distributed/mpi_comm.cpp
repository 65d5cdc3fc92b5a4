#include "distributed/mpi_comm.h"

#include <mpi.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>

#include "autograd/rank_error.h"
#include "distributed/copy_bytes.h"
#include "distributed/exit_code.h"
#include "distributed/peers.h"

namespace weft {
namespace {

int64_t piece = int64_t{1} << 30;  // bytes of one MPI message at most

// Messages of the two kinds never match each other.
constexpr int collective_tag = 1, pair_tag = 2;

Error mpi_error(int code, const std::string& call) {
  char why[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, why, &length);
  int kind = 0;
  MPI_Error_class(code, &kind);
  return Error(kind == MPI_ERR_TRUNCATE ? Exit::internal : Exit::peer_lost, text(call, ": ", why));
}

void check_mpi(int code, const char* call) {
  if (code != MPI_SUCCESS) throw Error(mpi_error(code, call));
}

// Of all ranks, the one that is `rank` of comm.
int world_rank(MPI_Comm comm, int rank) {
  MPI_Group members = MPI_GROUP_NULL, all = MPI_GROUP_NULL;
  MPI_Comm_group(comm, &members);
  MPI_Comm_group(MPI_COMM_WORLD, &all);
  int found = rank;
  MPI_Group_translate_ranks(members, 1, &rank, all, &found);
  MPI_Group_free(&members);
  MPI_Group_free(&all);
  return found;
}

// A set of messages under way.
class Messages {
 public:
  explicit Messages(MPI_Comm comm) : comm_(comm) {}

  void receive(void* data, int64_t bytes, int from, int tag) {
    auto* p = static_cast<std::byte*>(data);
    for_pieces(bytes, [&](int64_t at, int n) {
      MPI_Request& request = next({from, true, n});
      check(MPI_Irecv(p + at, n, MPI_BYTE, from, tag, comm_, &request), "MPI_Irecv", ends_.back());
    });
  }

  void send(const void* data, int64_t bytes, int to, int tag) {
    const auto* p = static_cast<const std::byte*>(data);
    for_pieces(bytes, [&](int64_t at, int n) {
      MPI_Request& request = next({to, false, n});
      check(MPI_Isend(p + at, n, MPI_BYTE, to, tag, comm_, &request), "MPI_Isend", ends_.back());
    });
  }

  bool finished() {
    int flag = 0;
    std::vector<MPI_Status> status(requests_.size());
    const int code = MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &flag, status.data());
    check_all(code, status, "MPI_Testall");
    return flag != 0;
  }

  void wait() {
    std::vector<MPI_Status> status(requests_.size());
    const int code = MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), status.data());
    check_all(code, status, "MPI_Waitall");
    for (size_t i = 0; i < ends_.size(); ++i) {
      const End& end = ends_[i];
      if (!end.sends) continue;
      int got = 0;
      MPI_Get_count(&status[i], MPI_BYTE, &got);
      CHECK(got == end.bytes, "expected ", end.bytes, " bytes from rank ", world_rank(comm_, end.rank),
            ", got ", got);
    }
  }

 private:
  // The other end of a request.
  struct End {
    int rank;
    bool sends;
    int bytes;
  };

  MPI_Request& next(const End& end) {
    ends_.push_back(end);
    return requests_.emplace_back(MPI_REQUEST_NULL);
  }

  void check_all(int code, const std::vector<MPI_Status>& status, const char* call) const {
    if (code == MPI_ERR_IN_STATUS)
      for (size_t i = 0; i < status.size(); ++i)
        if (status[i].MPI_ERROR != MPI_ERR_PENDING) check(status[i].MPI_ERROR, call, ends_[i]);
    check_mpi(code, call);
  }

  // A message that fails is its other end's fault, unless it is not the one that was expected.
  void check(int code, const char* call, const End& end) const {
    if (code == MPI_SUCCESS) return;
    const int rank = world_rank(comm_, end.rank);
    const Error error = mpi_error(code, text(call, end.sends ? " from rank " : " to rank ", rank));
    if (error.code != Exit::peer_lost) throw Error(error);
    // Of a rank of this machine the watch knows what became of it, and ends this process.
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    throw RankError(rank, error);
  }

  template <class F>
  static void for_pieces(int64_t bytes, F f) {
    for (int64_t at = 0; at < bytes; at += piece) f(at, static_cast<int>(std::min(piece, bytes - at)));
  }

  MPI_Comm comm_;
  std::vector<MPI_Request> requests_;
  std::vector<End> ends_;  // of each request
};

class MpiComm : public Communicator {
 public:
  MpiComm(MPI_Comm comm, int rank, int size, std::shared_ptr<PeerBoard> board)
      : Communicator(rank, size), board_(std::move(board)), comm_(comm) {
    check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  }

  ~MpiComm() override {
    int over = 0;
    MPI_Finalized(&over);
    if (over || std::uncaught_exceptions() > 0) {
      // The buffers of what is still under way belong to MPI until the process ends.
      for (Letter& letter : sent_) static_cast<void>(new Letter(std::move(letter)));
      return;
    }
    deliver();
    if (comm_ != MPI_COMM_WORLD) MPI_Comm_free(&comm_);
  }

  const char* name() const override { return "mpi"; }
  void beat(int64_t step, const char* phase) override { board_->beat(step, phase); }
  void pulse() override { board_->pulse(); }

  bool first_to_say() override { return board_->first_to_say(); }

  // The caller has said what failed; the others, which see it on the board, are silent.
  void leave(Exit code, int culprit, const std::string& what) override {
    board_->first_to_say();
    board_->leave(code, culprit, what);
    call_on_leave(code, culprit, what);
    std::fflush(nullptr);
    _exit(static_cast<int>(code));
  }

 protected:
  void move_all_gather(const void* mine, void* all, std::span<const int64_t> bytes) override {
    reap();
    Messages messages(comm_);
    auto* to = static_cast<std::byte*>(all);
    for (int r = 0; r < size(); to += bytes[r++])
      if (r == rank())
        copy_bytes(to, mine, bytes[r]);
      else
        messages.receive(to, bytes[r], r, collective_tag);
    for_others([&](int r) { messages.send(mine, bytes[rank()], r, collective_tag); });
    messages.wait();
  }

  void move_all_to_all(const void* out, std::span<const int64_t> sent, void* in,
                       std::span<const int64_t> received) override {
    CHECK(sent[rank()] == received[rank()], "all_to_all: rank ", rank(), " sends ", sent[rank()],
          " bytes to itself, expects ", received[rank()]);
    reap();
    Messages messages(comm_);
    const auto* from = static_cast<const std::byte*>(out);
    auto* to = static_cast<std::byte*>(in);
    std::vector<const std::byte*> part(size());
    for (int r = 0; r < size(); from += sent[r++]) part[r] = from;
    for (int r = 0; r < size(); to += received[r++])
      if (r == rank())
        copy_bytes(to, part[r], received[r]);
      else
        messages.receive(to, received[r], r, collective_tag);
    for_others([&](int r) { messages.send(part[r], sent[r], r, collective_tag); });
    messages.wait();
  }

  void move_broadcast(void* data, int64_t bytes, int root) override {
    reap();
    for (int64_t at = 0; at < bytes; at += piece)
      check_mpi(MPI_Bcast(static_cast<std::byte*>(data) + at, static_cast<int>(std::min(piece, bytes - at)),
                          MPI_BYTE, root, comm_),
                "MPI_Bcast");
  }

  // A copy travels, so that the caller may go on whatever the size: with MPI_Send a long message waits for
  // its receiver.
  void move_send(const void* data, int64_t bytes, int to) override {
    reap();
    Letter& letter =
        sent_.emplace_back(Letter{std::vector<std::byte>(static_cast<size_t>(bytes)), Messages(comm_)});
    copy_bytes(letter.data.data(), data, bytes);
    letter.messages.send(letter.data.data(), bytes, to, pair_tag);
  }

  void move_recv(void* data, int64_t bytes, int from) override {
    reap();
    Messages messages(comm_);
    messages.receive(data, bytes, from, pair_tag);
    messages.wait();
  }

  void move_send_recv(const void* out, int64_t out_bytes, int to, void* in, int64_t in_bytes,
                      int from) override {
    reap();
    Messages messages(comm_);
    messages.receive(in, in_bytes, from, pair_tag);
    messages.send(out, out_bytes, to, pair_tag);
    messages.wait();
  }

  void move_barrier() override {
    reap();
    check_mpi(MPI_Barrier(comm_), "MPI_Barrier");
  }

  std::unique_ptr<Communicator> move_split(int color, int key) override {
    reap();
    MPI_Comm group = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(comm_, color < 0 ? MPI_UNDEFINED : color, key, &group), "MPI_Comm_split");
    if (group == MPI_COMM_NULL) return nullptr;
    int place = 0, members = 0;
    MPI_Comm_rank(group, &place);
    MPI_Comm_size(group, &members);
    return std::make_unique<MpiComm>(group, place, members, board_);
  }

  void deliver() {
    for (Letter& letter : sent_) letter.messages.wait();
    sent_.clear();
  }

  std::shared_ptr<PeerBoard> board_;

 private:
  struct Letter {
    std::vector<std::byte> data;
    Messages messages;
  };

  // Ranks after mine first, so that not all begin with rank 0.
  template <class F>
  void for_others(F f) {
    for (int i = 1; i < size(); ++i) f((rank() + i) % size());
  }

  void reap() {
    std::erase_if(sent_, [](Letter& letter) { return letter.messages.finished(); });
  }

  MPI_Comm comm_;
  std::deque<Letter> sent_;
};

void end_process(Exit code) {
  std::fflush(nullptr);
  _exit(static_cast<int>(code));
}

class MpiWorld final : public MpiComm {
 public:
  MpiWorld(int rank, int size, std::shared_ptr<PeerBoard> board, const WorldOptions& options)
      : MpiComm(MPI_COMM_WORLD, rank, size, std::move(board)) {
    move_barrier();  // all have entered the board
    board_->unlink();
    if (options.watch)
      watch_.emplace(*board_, options.hang_limit, options.stop_limit, [this](const PeerBoard::Lost& lost) {
        board_->leave(lost.code, lost.culprit, lost.what);
        if (board_->first_to_say()) std::fprintf(stderr, "weft: %s\n", lost.what.c_str());
        call_on_leave(lost.code, lost.culprit, lost.what);
        end_process(lost.code);
      });
  }

  ~MpiWorld() override {
    if (std::uncaught_exceptions() > 0) return;  // still watched: peers see this process end
    deliver();
    MPI_Barrier(MPI_COMM_WORLD);  // a peer that fails before its end is still noticed here
    board_->done();
    watch_.reset();
    MPI_Finalize();
  }

 private:
  std::optional<Watch> watch_;
};

// What Open MPI would say on stderr on healthy machines, and how it waits. The user's own settings win.
void quieten(const Launched& launched) {
  const auto prefer = [](const char* name, const char* value) { ::setenv(name, value, 0); };
  prefer("OMPI_MCA_btl_base_warn_component_unused", "0");
  prefer("OMPI_MCA_mpi_warn_on_fork", "0");
  prefer("OMPI_MCA_btl_openib_warn_no_device_params_found", "0");
  prefer("HWLOC_HIDE_ERRORS", "2");
#if defined(OMPI_MAJOR_VERSION) && OMPI_MAJOR_VERSION >= 5
  // On one host no message goes over TCP, which complains where there is no network.
  if (launched.local_size == launched.size) prefer("OMPI_MCA_btl", "self,sm");
#endif
  // Containers often forbid processes to read each other's memory; Open MPI complains and copies twice
  // anyway.
  char byte = 1, read = 0;
  const iovec to{&read, 1}, from{&byte, 1};
  if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) < 0)
    for (const char* name :
         {"OMPI_MCA_btl_vader_single_copy_mechanism", "OMPI_MCA_btl_sm_single_copy_mechanism"})
      prefer(name, "none");
  if (launched.local_size > static_cast<int>(std::thread::hardware_concurrency()))
    prefer("OMPI_MCA_mpi_yield_when_idle", "1");
}

// MPI_Init waits for all ranks, for ever. Ends the process, naming who is missing, when that takes too long.
class StartLimit {
 public:
  StartLimit(PeerBoard& board, const Launched& launched, std::chrono::seconds limit)
      : thread_([this, &board, launched, limit] {
          std::unique_lock lock(mutex_);
          if (started_.wait_for(lock, limit, [&] { return done_; })) return;
          std::string who;
          const std::vector<int> missing = board.missing(launched.local_size);
          for (int rank : missing) who += text(who.empty() ? "" : ", ", rank);
          if (launched.size > launched.local_size && !who.empty())
            who += " (those of other nodes are not seen from here)";
          PeerBoard::Slow why{launched.rank, "missing: some on another node"};
          if (!missing.empty())
            why = {missing[0], "missing: " + who};
          else if (board.stopped())
            why = board.slowest();
          const std::string what =
              text("not all of ", launched.size, " ranks started within ", limit.count(), " s; ", why.what);
          if (board.first_to_say()) std::fprintf(stderr, "weft: %s\n", what.c_str());
          leave_exit_code({}, launched.rank, Exit::peer_lost, why.rank, what);
          board.unlink();
          end_process(Exit::peer_lost);
        }) {}

  ~StartLimit() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    started_.notify_one();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable started_;
  bool done_ = false;
  std::thread thread_;
};

}  // namespace

bool built_with_mpi() { return true; }

std::string mpi_version() {
  char words[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  check_mpi(MPI_Get_library_version(words, &length), "MPI_Get_library_version");
  const std::string all(words, static_cast<size_t>(length));
  return all.substr(0, all.find_first_of(",\n"));  // how it was packaged or configured follows
}

void set_mpi_piece(int64_t bytes) {
  CHECK(bytes > 0 && bytes <= (int64_t{1} << 30), "mpi: pieces of ", bytes, " bytes");
  piece = bytes;
}

std::unique_ptr<Communicator> mpi_world(const Launched& launched, const WorldOptions& options) {
  int already = 0;
  MPI_Initialized(&already);
  CHECK(!already, "mpi_world: there is one already");
  quieten(launched);
  auto board = std::make_shared<PeerBoard>(launched.job, launched.rank, launched.size);
  {
    const StartLimit limit(*board, launched, options.start_limit);
    int provided = 0;
    check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  }
  int rank = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (size != launched.size) {
    board->unlink();
    throw Error(Exit::usage,
                text("the launcher started ", launched.size, " ranks, but MPI sees ", size,
                     ": they do not belong to the same MPI"),
                {}, "use the mpirun of the MPI weft was built with, or: srun --mpi=pmix");
  }
  return std::make_unique<MpiWorld>(rank, size, std::move(board), options);
}

}  // namespace weft
