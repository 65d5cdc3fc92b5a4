#pragma once
// Who of this node's ranks is still alive: a board in shared memory with one cell a rank, and a thread that
// watches it. A rank that dies (its process is gone or a zombie), leaves with a code, or stops making
// progress is noticed within a fraction of a second by the others, which may be waiting for it inside MPI.
// Death across nodes is mpirun's to see.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "autograd/check.h"

namespace weft {

class PeerBoard {
 public:
  struct Lost {
    Exit code;  // peer_lost, hang or stopped
    int culprit;
    std::string what;
  };
  struct Slow {
    int rank;
    std::string what;  // and where all ranks are
  };

  // Opens or creates the board of this job and enters rank. Error (io) where shared memory is not to be had.
  PeerBoard(const std::string& job, int rank, int ranks);
  ~PeerBoard();
  PeerBoard(const PeerBoard&) = delete;
  PeerBoard& operator=(const PeerBoard&) = delete;

  // Call when every rank has entered: the name goes, so that nothing stays behind however the job ends.
  void unlink();

  void beat(int64_t step, const char* phase);                   // progress; any thread
  void pulse();                                                 // a sign of life, no progress; any thread
  void leave(Exit code, int culprit, const std::string& what);  // this rank ends; culprit: the rank at fault
  void done();                                                  // this rank ends as planned

  std::vector<int> missing(
      int local_ranks) const;        // ranks not entered yet, if fewer than local_ranks are here
  std::optional<Lost> lost() const;  // a rank that left or died, and whose fault that was
  bool first_to_say();               // true for one rank of this node: one failure is one line
  int64_t beats() const;             // of this rank
  int64_t signs() const;             // beats and pulses of all ranks here: they may wait for one of them
  bool stopped() const;              // a peer has been stopped by a signal (SIGSTOP)
  Slow slowest() const;              // the rank that is stopped or has the fewest beats
  int rank() const { return rank_; }

 private:
  struct Cell;
  struct Shared;
  const Cell& cell(int rank) const;

  std::string path_;
  int rank_, ranks_;
  size_t bytes_;
  Shared* shared_ = nullptr;
};

// Calls on_loss once, from its own thread, when board.lost(), when the parent process is gone, when no rank
// has given a sign of life for hang_limit since this one's first beat, or when it has seen a peer stopped for
// stop_limit (0: never).
class Watch {
 public:
  using OnLoss = std::function<void(const PeerBoard::Lost&)>;
  Watch(PeerBoard& board, std::chrono::seconds hang_limit, std::chrono::seconds stop_limit, OnLoss on_loss);
  ~Watch();

 private:
  void run();

  PeerBoard& board_;
  std::chrono::seconds hang_limit_, stop_limit_;
  OnLoss on_loss_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace weft
