#include "tools/rank_failure.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "autograd/rank_error.h"
#include "distributed/agree.h"
#include "distributed/exit_code.h"
#include "tools/command.h"
#include "training/log/failure.h"

namespace weft {

void leave_word(Communicator& world, const std::string& run_folder, const std::string& result, bool json) {
  world.on_leave(
      [run_folder, result, json, rank = world.rank()](Exit code, int culprit, const std::string& what) {
        leave_exit_code(run_folder, rank, code, culprit, what);
        // `weft launch` writes that line itself, since it knows the first cause.
        if (!json || rank > 0 || std::getenv(launch_variable) != nullptr || anything_printed()) return;
        print_failure(failure_json(result, Error(code, what), culprit) + "\n");
      });
}

int end_rank(Communicator* world, const std::exception& failure, const std::string& result,
             std::optional<int64_t> step) {
  const Error error = as_error(failure);
  const auto* of_rank = dynamic_cast<const RankError*>(&failure);
  const int culprit = of_rank != nullptr ? of_rank->rank : rank_of(world);
  if (!result.empty()) print_failure(failure_json(result, error, culprit, step) + "\n");
  if (world == nullptr) throw Error(error);
  std::fflush(stdout);
  // A job that all ranks find at fault says so once. The others stay until the one that speaks has left,
  // which their watch sees: a launcher ends all ranks when the first leaves. What is wrong before the first
  // step is mostly wrong on all ranks, and rank 0, whose line of JSON tells it, is let go first.
  if (!step && world->rank() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(500));
  // Whose disk is full, of a job on many machines; what rank 0 finds at the start all find.
  const bool own = of_rank == nullptr && (step || world->rank() > 0);
  const Error said(error.code, text(own ? text("on rank ", world->rank(), ": ") : "", error.what()),
                   error.where, error.advice);
  if (world->first_to_say())
    print_error(said);
  else
    std::this_thread::sleep_for(std::chrono::seconds(2));
  world->leave(error.code, culprit, error_line(said));
  return static_cast<int>(error.code);
}

}  // namespace weft
