#include "distributed/peers.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

namespace weft {
namespace {

enum PeerState : int32_t { absent, running, left, ended };

// What /proc says of a process: its state letter and its start time, which tells a reused pid from the old
// one.
struct Process {
  char state = 'X';  // X: there is none
  uint64_t started = 0;

  bool alive() const { return state != 'X' && state != 'Z'; }
};

Process look_at(int pid) {
  std::ifstream file(text("/proc/", pid, "/stat"));
  std::string line;
  if (!std::getline(file, line)) return {};
  // The name in parentheses may hold anything; fields are counted from the last one on.
  std::istringstream fields(line.substr(std::min(line.size(), line.rfind(')') + 1)));
  Process process;
  fields >> process.state;
  std::string skipped;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  fields >> process.started;
  return process;
}

template <size_t n>
void store(std::atomic<char> (&to)[n], const std::string& from) {
  for (size_t i = 0; i < n; ++i)
    to[i].store(i < from.size() && i + 1 < n ? from[i] : char{0}, std::memory_order_relaxed);
}

template <size_t n>
std::string load(const std::atomic<char> (&from)[n]) {
  std::string value;
  for (size_t i = 0; i < n; ++i) {
    const char c = from[i].load(std::memory_order_relaxed);
    if (c == 0) break;
    value += c;
  }
  return value;
}

}  // namespace

struct PeerBoard::Cell {
  std::atomic<int32_t> state;  // written last, read first
  std::atomic<int32_t> pid;
  std::atomic<uint64_t> started;
  std::atomic<int32_t> code, culprit;
  std::atomic<int64_t> beats, pulses;
  std::atomic<int64_t> step;
  std::atomic<char> phase[24];
  std::atomic<char> what[400];

  bool here() const { return state != absent && process().alive(); }
  Process process() const {
    const Process p = look_at(pid);
    return p.started == started ? p : Process{};
  }
  std::string place() const {
    return beats == 0 ? "at the start" : text("at step ", step.load(), " in ", load(phase));
  }
};

struct PeerBoard::Shared {
  std::atomic<int32_t> said;
  Cell cells[];
};

PeerBoard::PeerBoard(const std::string& job, int rank, int ranks) : rank_(rank), ranks_(ranks) {
  static_assert(std::atomic<int64_t>::is_always_lock_free, "cells are shared between processes");
  CHECK(rank >= 0 && rank < ranks, "peers: rank ", rank, " of ", ranks);
  std::string name = job;
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '-');
  const auto folder = std::filesystem::is_directory("/dev/shm") ? std::filesystem::path("/dev/shm")
                                                                : std::filesystem::temp_directory_path();
  path_ = folder / text("weft-", getuid(), "-", name);
  bytes_ = sizeof(Shared) + sizeof(Cell) * static_cast<size_t>(ranks);
  const int file = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  void* memory = MAP_FAILED;
  int error = file < 0 ? errno : ::posix_fallocate(file, 0, static_cast<off_t>(bytes_));
  if (error == 0) {  // the memory is there: a full /dev/shm is no SIGBUS later
    memory = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    error = errno;
  }
  if (file >= 0) ::close(file);
  if (memory == MAP_FAILED)
    throw Error(Exit::io, text("no shared memory for the board of ranks: ", std::strerror(error)), path_,
                "give the machine a writable /dev/shm with free space");
  // Fresh pages are zero, which is a cell of an absent rank; cells that a dead job left behind are not
  // `here`.
  shared_ = static_cast<Shared*>(memory);
  Cell& mine = shared_->cells[rank];
  mine.state = absent;
  mine.pid = getpid();
  mine.started = look_at(getpid()).started;
  mine.beats = 0;
  mine.pulses = 0;
  mine.state = running;
}

PeerBoard::~PeerBoard() { ::munmap(shared_, bytes_); }

const PeerBoard::Cell& PeerBoard::cell(int rank) const { return shared_->cells[rank]; }

void PeerBoard::unlink() { ::unlink(path_.c_str()); }

void PeerBoard::beat(int64_t step, const char* phase) {
  Cell& mine = shared_->cells[rank_];
  mine.step = step;
  store(mine.phase, phase);
  ++mine.beats;
}

void PeerBoard::pulse() { ++shared_->cells[rank_].pulses; }

void PeerBoard::leave(Exit code, int culprit, const std::string& what) {
  Cell& mine = shared_->cells[rank_];
  mine.code = static_cast<int32_t>(code);
  mine.culprit = culprit;
  store(mine.what, what);
  mine.state = left;
}

void PeerBoard::done() { shared_->cells[rank_].state = ended; }

int64_t PeerBoard::beats() const { return cell(rank_).beats; }

int64_t PeerBoard::signs() const {
  int64_t sum = 0;
  for (int r = 0; r < ranks_; ++r) sum += cell(r).beats + cell(r).pulses;
  return sum;
}

std::vector<int> PeerBoard::missing(int local_ranks) const {
  std::vector<int> ranks;
  for (int r = 0; r < ranks_; ++r)
    if (!cell(r).here()) ranks.push_back(r);
  if (ranks_ - std::ssize(ranks) >= local_ranks) ranks.clear();  // this node is complete: another one is not
  return ranks;
}

std::optional<PeerBoard::Lost> PeerBoard::lost() const {
  // Those that left say why. Others may be gone because of them: a launcher ends all ranks when one leaves.
  for (int r = 0; r < ranks_; ++r) {
    const Cell& peer = cell(r);
    if (r == rank_ || peer.state != left) continue;
    // A rank that left because of another one has said which; and who was asked to leave was asked for all,
    // who may still be waiting for the last word of what they agreed on.
    const auto code = static_cast<Exit>(peer.code.load());
    if (code == Exit::peer_lost || code == Exit::hang || code == Exit::stopped)
      return Lost{code, peer.culprit, load(peer.what)};
    return Lost{Exit::peer_lost, peer.culprit,
                text("rank ", r, " left with code ", peer.code.load(), ": ", load(peer.what))};
  }
  for (int r = 0; r < ranks_; ++r) {
    const Cell& peer = cell(r);
    // The state is read again: between the two looks the process may have ended as planned.
    if (r != rank_ && peer.state == running && !peer.process().alive() && peer.state == running)
      return Lost{Exit::peer_lost, r,
                  text("rank ", r, " (process ", peer.pid.load(), ") is gone, last ", peer.place(),
                       "; where nobody ended it, its machine's log (dmesg) may say why")};
  }
  return std::nullopt;
}

bool PeerBoard::first_to_say() { return shared_->said.exchange(1) == 0; }

PeerBoard::Slow PeerBoard::slowest() const {
  int slow = rank_;
  bool stopped = false;
  std::string all;
  for (int r = 0; r < ranks_; ++r) {
    const Cell& peer = cell(r);
    if (peer.state != running) continue;
    const bool sleeps = peer.process().state == 'T';
    if (sleeps > stopped || (sleeps == stopped && peer.beats < cell(slow).beats)) slow = r, stopped = sleeps;
    all += text(all.empty() ? "" : ", ", "rank ", r, " ", sleeps ? "stopped " : "", peer.place());
  }
  return {slow, text("rank ", slow, stopped ? " is stopped" : " is the slowest", " (", all, ")")};
}

bool PeerBoard::stopped() const {
  for (int r = 0; r < ranks_; ++r)
    if (r != rank_ && cell(r).state == running && cell(r).process().state == 'T') return true;
  return false;
}

Watch::Watch(PeerBoard& board, std::chrono::seconds hang_limit, std::chrono::seconds stop_limit,
             OnLoss on_loss)
    : board_(board),
      hang_limit_(hang_limit),
      stop_limit_(stop_limit),
      on_loss_(std::move(on_loss)),
      thread_([this] { run(); }) {}

Watch::~Watch() {
  stop_ = true;
  thread_.join();
}

void Watch::run() {
  const pid_t parent = getppid();
  int64_t signs = board_.signs();
  // Looks are counted, not time: while the whole job is suspended (Ctrl-Z), nobody looks.
  constexpr std::chrono::milliseconds pause{50};
  int64_t idle = 0, stopped = 0;
  for (; !stop_; std::this_thread::sleep_for(pause)) {
    if (const auto lost = board_.lost()) return on_loss_(*lost);
    if (getppid() != parent)
      return on_loss_({Exit::peer_lost, board_.rank(), "the launcher that started this rank is gone"});
    idle = board_.signs() == signs ? idle + 1 : 0;
    signs = board_.signs();
    stopped = board_.stopped() ? stopped + 1 : 0;
    const auto over = [&](int64_t looks, std::chrono::seconds limit) {
      return limit.count() > 0 && looks * pause > limit;
    };
    const bool hangs = board_.beats() > 0 && over(idle, hang_limit_);
    if (hangs || over(stopped, stop_limit_)) {
      const std::chrono::seconds limit = hangs ? hang_limit_ : stop_limit_;
      const PeerBoard::Slow slow = board_.slowest();
      return on_loss_({Exit::hang, slow.rank, text("no progress for ", limit.count(), " s: ", slow.what)});
    }
  }
}

}  // namespace weft
