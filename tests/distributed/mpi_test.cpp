// Run under mpirun. With no argument: every collective, on groups of 1 to size ranks, equals the same on
// threads bit for bit. With one: rank 1 misbehaves in that way, for launch_test.cpp to see what becomes of
// the job.
#include <sys/types.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#ifdef WEFT_WITH_MPI
#include <mpi.h>
#endif

#include "autograd/rank_error.h"
#include "distributed/agree.h"
#include "distributed/environment.h"
#include "distributed/exit_code.h"
#include "distributed/mesh.h"
#include "distributed/mpi_comm.h"
#include "distributed/thread_comm.h"
#include "tests/distributed/exercise.h"

namespace weft {
namespace {

void expect(bool condition, const std::string& what) {
  if (!condition) throw Error(Exit::internal, what);
}

void compare_with_threads(Communicator& comm) {
  for (int64_t piece : {int64_t{1} << 30, int64_t{1000}}) {
    set_mpi_piece(piece);
    const WireBytes before = comm.wire();
    const auto mine = exercise(comm);
    const WireBytes sent = comm.wire() - before;
    run_ranks(comm.size(), [&](Communicator& thread) {
      const auto theirs = exercise(thread);
      if (thread.rank() != comm.rank()) return;
      expect(theirs == mine, text("rank ", comm.rank(), " of ", comm.size(), ": MPI and threads differ"));
      expect(thread.wire() == sent, "MPI and threads count other bytes");
    });
  }
  set_mpi_piece(int64_t{1} << 30);
}

void test_groups(Communicator& world) {
  const int me = world.rank(), p = world.size();
  compare_with_threads(world);
  for (int members = 1; members < p; ++members) {
    const auto group = world.split(me < members ? 0 : 1, -me);
    expect(group->rank() == (me < members ? members : p) - 1 - me, "ranks of a group follow the key");
    compare_with_threads(*group);
  }
  expect(world.split(me == 0 ? -1 : 0, 0) == nullptr || me != 0, "a negative color is in no group");
  const Mesh mesh = make_mesh(world, plan_mesh(p, 2));
  expect(sum_over_ranks(mesh.context.get(), 1) == mesh.shape.cp, "cp");
  expect(sum_over_ranks(mesh.data.get(), 1) == mesh.shape.dp, "dp");
}

void test_letters(Communicator& world) {
  const int right = (world.rank() + 1) % world.size(),
            left = (world.rank() + world.size() - 1) % world.size();
  std::vector<double> big(1 << 17);
  for (int i = 0; i < 4; ++i) {  // 1 MB each: MPI_Send would wait
    big.assign(big.size(), world.rank() * 10 + i);
    world.send(big.data(), std::ssize(big), Dtype::f64, right);
  }
  for (int i = 0; i < 4; ++i) {
    world.recv(big.data(), std::ssize(big), Dtype::f64, left);
    expect(big.front() == left * 10 + i && big.back() == left * 10 + i, "letters arrive whole and in order");
  }
}

void test_checks(Communicator& world) {
  const auto group = world.split(0, world.rank());
  group->check_collectives(true);
  exercise(*group);
  std::string what;
  try {
    double x[64] = {};
    group->all_reduce(x, group->rank() == 1 ? 7 : 8, Dtype::f64, Reduce::sum, "grad");
  } catch (const Error& error) {
    what = error.what();
  }
  expect(what.find("rank 1 calls all_reduce of 7 x f64 (grad)") != std::string::npos,
         "a mismatch is named: " + what);
}

// Rank 2's MPI says that its message from rank 1, which is rank 0 of their group, has failed.
bool waiting_fails = false;
void fail_in_mpi(Communicator& world) {
  const auto group = world.split(world.rank() == 0 ? 1 : 0, world.rank());
  double x = 0;
  if (world.rank() == 1) group->send(&x, 1, Dtype::f64, 1);
  waiting_fails = world.rank() == 2;
  if (world.rank() == 2) group->recv(&x, 1, Dtype::f64, 0);
  world.barrier();
}

// What rank 1 does while the others wait for it.
void misbehave(Communicator& world, const std::string& how) {
  world.beat(7, "forward");
  world.barrier();
  if (how == "mpi") fail_in_mpi(world);
  if (world.rank() == 1) {
    if (how == "die") raise(SIGKILL);
    if (how == "crash") std::abort();
    if (how == "exit") _exit(0);
    if (how == "hang" || how == "sleep") raise(SIGSTOP);
    for (int i = 0; how == "slow" && i < 100; ++i) {  // longer than the limit, but not stuck
      world.pulse();
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    if (how == "fail") throw Error(Exit::numerics, "loss is not finite");
  }
  if (how == "stop") {  // as a training loop does: SIGUSR1 asks to leave between steps
    static volatile std::sig_atomic_t asked = 0;
    std::signal(SIGUSR1, [](int) { asked = 1; });
    if (world.rank() == 0) kill(std::atoi(std::getenv("WEFT_TEST_LAUNCHER")), SIGTERM);
    while (!any_rank(&world, asked)) world.beat(7, "forward");
    throw Error(Exit::stopped, "stopped by a signal");
  }
  for (int i = 0; i < (how == "slow" ? 2 : 200); ++i) {
    double x[1000] = {};
    world.all_reduce(x, 1000, Dtype::f64);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

int test_main(const std::string& how) {
  const Launched launched = detect_launch();
  int code = 0;
  std::unique_ptr<Communicator> world;
  try {
    if (how == "late" && launched.rank == 1) std::this_thread::sleep_for(std::chrono::seconds(20));
    world = world_communicator(launched, {std::chrono::seconds(how == "late" ? 2 : 60), true,
                                          std::chrono::seconds(how == "hang" || how == "slow" ? 2 : 0),
                                          std::chrono::seconds(how == "sleep" ? 1 : 20)});
    world->on_leave([&](Exit why, int culprit, const std::string& what) {
      leave_exit_code({}, launched.rank, why, culprit, what);
    });
    if (how.empty()) {
      expect(std::string(world->name()) == (launched.size > 1 ? "mpi" : "self"), "transport");
      test_groups(*world);
      test_letters(*world);
      test_checks(*world);
    } else if (how != "good") {
      misbehave(*world, how);
    }
    world.reset();
  } catch (const Error& error) {
    std::fprintf(stderr, "rank %d: %s\n", launched.rank, error.what());
    const auto* of_rank = dynamic_cast<const RankError*>(&error);
    if (world) world->leave(error.code, of_rank ? of_rank->rank : launched.rank, error.what());
    code = static_cast<int>(error.code);
  }
  leave_exit_code({}, launched.rank, static_cast<Exit>(code), launched.rank, "");
  return code;
}

}  // namespace
}  // namespace weft

#ifdef WEFT_WITH_MPI
// The library's own, but for one call that a test lets fail.
int MPI_Waitall(int count, MPI_Request* requests, MPI_Status* statuses) {
  const int code = PMPI_Waitall(count, requests, statuses);
  if (!weft::waiting_fails) return code;
  statuses[0].MPI_ERROR = MPI_ERR_OTHER;
  return MPI_ERR_IN_STATUS;
}
#endif

// MPI keeps memory until the process ends; nobody's leak.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }

int main(int argc, char** argv) { return weft::test_main(argc > 1 ? argv[1] : ""); }
