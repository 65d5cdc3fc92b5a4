// The meaning of every collective, by threads and alone; sums, bytes, fingerprints.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "distributed/agree.h"
#include "distributed/mesh.h"
#include "distributed/reduce.h"
#include "distributed/thread_comm.h"
#include "tests/distributed/exercise.h"

namespace weft {
namespace {

template <class F>
Error error_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no error";
  return Error(Exit::ok, "");
}

TEST(Reduce, FollowsTheTree) {
  // ((0+1)+(2+3))+4: 1 is lost beside 2^24, 1 + 1 is not.
  const float parts[] = {16777216, 0, 1, 1, 0};
  float sum = 0;
  reduce_over_ranks(&sum, parts, 5, 1, Dtype::f32, Reduce::sum);
  EXPECT_EQ(sum, 16777218.0f);
  const float late[] = {16777216, 0, 0, 1, 1};
  reduce_over_ranks(&sum, late, 5, 1, Dtype::f32, Reduce::sum);
  EXPECT_EQ(sum, 16777216.0f);
}

TEST(Reduce, Bf16IsSummedInF32) {
  std::vector<bf16> parts(16, bf16(0.01f));
  parts[0] = bf16(4.0f);  // 4 + 0.01 is 4 in bf16
  bf16 sum;
  reduce_over_ranks(&sum, parts.data(), 16, 1, Dtype::bf16, Reduce::sum);
  EXPECT_EQ(static_cast<float>(sum), static_cast<float>(bf16(4.0f + 15 * static_cast<float>(bf16(0.01f)))));
}

TEST(Reduce, NanWinsAMaximum) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (int where = 0; where < 3; ++where) {
    float parts[] = {1, 2, 3}, top = 0;
    parts[where] = nan;
    reduce_over_ranks(&top, parts, 3, 1, Dtype::f32, Reduce::max);
    EXPECT_TRUE(std::isnan(top)) << where;
  }
}

TEST(Reduce, IntegersWrap) {
  const int32_t parts[] = {std::numeric_limits<int32_t>::max(), 1};
  int32_t sum = 0;
  reduce_over_ranks(&sum, parts, 2, 1, Dtype::i32, Reduce::sum);
  EXPECT_EQ(sum, std::numeric_limits<int32_t>::min());
}

class Ranks : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(, Ranks, testing::Values(1, 2, 3, 4, 8));

TEST_P(Ranks, CollectivesMeanWhatTheySay) {
  run_ranks(GetParam(), [](Communicator& comm) {
    const int p = comm.size(), me = comm.rank();
    std::vector<double> x(11);
    for (int i = 0; i < 11; ++i) x[i] = 100 * me + i;
    std::vector<double> reduced = x;
    comm.all_reduce(reduced.data(), 11, Dtype::f64);
    for (int i = 0; i < 11; ++i) EXPECT_EQ(reduced[i], 100 * p * (p - 1) / 2 + p * i);
    reduced = x;
    comm.all_reduce(reduced.data(), 11, Dtype::f64, Reduce::max);
    for (int i = 0; i < 11; ++i) EXPECT_EQ(reduced[i], 100 * (p - 1) + i);

    std::vector<double> all(11 * p);
    comm.all_gather(x.data(), all.data(), 11, Dtype::f64);
    for (int i = 0; i < 11 * p; ++i) EXPECT_EQ(all[i], 100 * (i / 11) + i % 11);

    std::vector<double> part(11);
    comm.reduce_scatter(all.data(), part.data(), 11, Dtype::f64);
    for (int i = 0; i < 11; ++i) EXPECT_EQ(part[i], p * (100 * me + i));

    std::vector<int32_t> out(2 * p), in(2 * p);
    for (int r = 0; r < p; ++r) out[2 * r] = out[2 * r + 1] = 10 * me + r;
    comm.all_to_all(out.data(), in.data(), 2, Dtype::i32);
    for (int r = 0; r < p; ++r) EXPECT_EQ(in[2 * r], 10 * r + me);

    for (int root = 0; root < p; ++root) {
      double told = me;
      comm.broadcast(&told, 1, Dtype::f64, root);
      EXPECT_EQ(told, root);
    }
  });
}

TEST_P(Ranks, SumsAreTheSameBitsOnEveryRankAndRun) {
  const int p = GetParam();
  std::vector<std::vector<std::byte>> first(p);
  for (int run = 0; run < 2; ++run)
    run_ranks(p, [&](Communicator& comm) {
      auto seen = exercise(comm);
      if (run == 0)
        first[comm.rank()] = std::move(seen);
      else
        EXPECT_EQ(seen, first[comm.rank()]);
    });
}

TEST_P(Ranks, MayWorkInPlace) {
  run_ranks(GetParam(), [](Communicator& comm) {
    const int p = comm.size(), me = comm.rank();
    std::vector<float> all(3 * p, -1);
    std::iota(&all[3 * me], &all[3 * me] + 3, static_cast<float>(3 * me));
    comm.all_gather(&all[3 * me], all.data(), 3, Dtype::f32);
    for (int i = 0; i < 3 * p; ++i) EXPECT_EQ(all[i], i);
    comm.reduce_scatter(all.data(), &all[3 * me], 3, Dtype::f32);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(all[3 * me + i], p * (3 * me + i));
  });
}

TEST_P(Ranks, BytesFollowTheFormulas) {
  run_ranks(GetParam(), [](Communicator& comm) {
    const int p = comm.size(), me = comm.rank();
    std::vector<float> a(100 * p), b(100 * p);
    WireBytes expected;
    comm.all_gather(a.data(), b.data(), 100, Dtype::f32);
    expected.all_gather += 400 * (p - 1);
    comm.reduce_scatter(a.data(), b.data(), 100, Dtype::f32);
    expected.reduce_scatter += 400 * (p - 1);
    comm.all_to_all(a.data(), b.data(), 100, Dtype::f32);
    expected.all_to_all += 400 * (p - 1);
    EXPECT_EQ(comm.wire(), expected);

    comm.all_reduce(a.data(), 99, Dtype::bf16);
    const Slice own = slice_of(99, me, p);
    if (p > 1) {
      expected.reduce_scatter += 2 * (99 - (own.end - own.begin));
      expected.all_gather += 2 * (own.end - own.begin) * (p - 1);
    }
    comm.broadcast(a.data(), 10, Dtype::f64, 0);
    if (me == 0) expected.broadcast += 80 * (p - 1);
    if (p > 1) {
      comm.send_recv(a.data(), 5, (me + 1) % p, b.data(), 5, (me + p - 1) % p, Dtype::f32);
      expected.send_recv += 20;
      comm.send_recv(a.data(), 3, me + 1 < p ? me + 1 : nobody, b.data(), 3, me - 1,
                     Dtype::f32);  // -1 is nobody
      expected.send_recv += me + 1 < p ? 12 : 0;
    }
    EXPECT_EQ(comm.wire(), expected);
    EXPECT_EQ(comm.wire() - expected, WireBytes{});
  });
}

TEST(SelfComm, EqualsOneThread) {
  const auto self = self_communicator();
  const auto alone = exercise(*self);
  run_ranks(1, [&](Communicator& comm) { EXPECT_EQ(exercise(comm), alone); });
  EXPECT_EQ(self->wire(), WireBytes{});
  EXPECT_EQ(self->split(-1, 0), nullptr);
  EXPECT_EQ(self->split(3, 0)->size(), 1);
}

TEST(Pairs, SendDoesNotWaitAndKeepsOrder) {
  run_ranks(2, [](Communicator& comm) {
    const int other = 1 - comm.rank();
    std::vector<double> big(100000);
    for (int i = 0; i < 5; ++i) {  // both send everything before either receives
      big[0] = i;
      comm.send(big.data(), std::ssize(big), Dtype::f64, other);
    }
    for (int i = 0; i < 5; ++i) {
      comm.recv(big.data(), std::ssize(big), Dtype::f64, other);
      EXPECT_EQ(big[0], i);
    }
  });
}

TEST(Split, GroupsByColorOrderedByKey) {
  run_ranks(5, [](Communicator& comm) {
    const int me = comm.rank();
    const auto group = comm.split(me == 4 ? -1 : me % 2, -me);
    EXPECT_EQ(group == nullptr, me == 4);
    if (me == 4) return;
    EXPECT_EQ(group->size(), 2);
    EXPECT_EQ(group->rank(), me < 2 ? 1 : 0);
    EXPECT_EQ(gather_values(group.get(), int64_t{me}), (std::vector<int64_t>{me % 2 + 2, me % 2}));
  });
}

TEST(Mesh, WishesAndDemands) {
  EXPECT_EQ(plan_mesh(8, 4).dp, 2);
  EXPECT_EQ(plan_mesh(8, 4).cp, 4);
  EXPECT_EQ(plan_mesh(8, 4).note, "");
  EXPECT_EQ(plan_mesh(6, 4).cp, 3);
  EXPECT_NE(plan_mesh(6, 4).note.find("3 instead of 4"), std::string::npos);
  EXPECT_EQ(plan_mesh(7, 4).cp, 1);
  EXPECT_EQ(plan_mesh(2, 4).cp, 2);
  EXPECT_EQ(plan_mesh(1, 4).dp, 1);
  EXPECT_EQ(plan_mesh(8, 2, 4).dp, 4);
  for (const Error& error : {error_of([] { plan_mesh(8, 2, 3); }), error_of([] { plan_mesh(8, 0); }),
                             error_of([] { plan_mesh(8, 1, -1); })})
    EXPECT_EQ(error.code, Exit::recipe);
}

TEST(Mesh, ContextRanksAreNeighbours) {
  run_ranks(6, [](Communicator& world) {
    const Mesh mesh = make_mesh(world, plan_mesh(6, 3));
    const int me = world.rank();
    EXPECT_EQ(mesh.context->rank(), me % 3);
    EXPECT_EQ(mesh.data->rank(), me / 3);
    EXPECT_EQ(gather_values(mesh.context.get(), int64_t{me})[0], me / 3 * 3);
    EXPECT_EQ(gather_values(mesh.data.get(), int64_t{me}), (std::vector<int64_t>{me % 3, me % 3 + 3}));
  });
}

TEST(Agree, GathersValuesAndTexts) {
  run_ranks(3, [](Communicator& comm) {
    const int me = comm.rank();
    EXPECT_EQ(gather_values(&comm, 0.5 * me), (std::vector<double>{0, 0.5, 1}));
    EXPECT_EQ(sum_over_ranks(&comm, (int64_t{1} << 53) + me), 3 * (int64_t{1} << 53) + 3);
    EXPECT_EQ(gather_texts(&comm, std::string(me * 3, 'x')), (std::vector<std::string>{"", "xxx", "xxxxxx"}));
    EXPECT_TRUE(any_rank(&comm, me == 2));
    EXPECT_FALSE(any_rank(&comm, false));
    EXPECT_FALSE(all_ranks(&comm, me != 2));
    EXPECT_TRUE(all_ranks(&comm, true));
    require_same(&comm, "the recipe", "abc");
    const Error error = error_of([&] { require_same(&comm, "the recipe", me == 1 ? "abd" : "abc"); });
    EXPECT_EQ(error.code, Exit::recipe);
    EXPECT_EQ(std::string(error.what()),
              "ranks do not agree on the recipe: rank 1 has 'abd', rank 0 has 'abc'");
    const Error line = error_of([&] {
      require_same(&comm, "recipe",
                   std::string("seed: 1\noptim:\n  lr: ") + (me == 1 ? "1e-3" : "3e-4") + "\nrun: x\n");
    });
    EXPECT_STREQ(line.what(), "ranks do not agree on recipe: rank 1 has 'lr: 1e-3', rank 0 has 'lr: 3e-4'");
    const Error shorter = error_of([&] { require_same(&comm, "recipe", me == 1 ? "a\n" : "a\nb\n"); });
    EXPECT_STREQ(shorter.what(), "ranks do not agree on recipe: rank 1 has '', rank 0 has 'b'");
  });
}

TEST(Agree, AProcessAloneAgreesWithItself) {
  EXPECT_EQ(rank_of(nullptr), 0);
  EXPECT_EQ(size_of(nullptr), 1);
  EXPECT_EQ(gather_values(nullptr, 0.5), std::vector<double>{0.5});
  EXPECT_EQ(gather_texts(nullptr, "x"), std::vector<std::string>{"x"});
  EXPECT_EQ(sum_over_ranks(nullptr, 3), 3);
  EXPECT_EQ(max_over_ranks(nullptr, -3), -3);
  EXPECT_TRUE(any_rank(nullptr, true));
  EXPECT_FALSE(all_ranks(nullptr, false));
  require_same(nullptr, "the recipe", "abc");
}

TEST(Checked, NamesTheOddRankAndOperation) {
  const Error error = error_of([] {
    run_ranks(4, [](Communicator& comm) {
      comm.check_collectives(true);
      exercise(comm);  // the right sequence passes
      std::vector<float> x(8), y(32);
      if (comm.rank() == 2)
        comm.all_reduce(x.data(), 8, Dtype::f32, Reduce::sum, "grad.ffn");
      else
        comm.all_gather(x.data(), y.data(), 8, Dtype::f32, "kv");
    });
  });
  EXPECT_EQ(error.code, Exit::internal);
  EXPECT_NE(std::string(error.what())
                .find("rank 2 calls all_reduce of 8 x f32 (grad.ffn), rank 0 calls all_gather of "
                      "32 x f32 (kv)"),
            std::string::npos)
      << error.what();
}

TEST(Checked, SeesCountDtypeTagAndUnequalPairs) {
  const auto fails = [](const std::function<void(Communicator&, bool odd)>& body) {
    return std::string(error_of([&] {
                         run_ranks(3, [&](Communicator& comm) {
                           comm.check_collectives(true);
                           body(comm, comm.rank() == 1);
                         });
                       }).what());
  };
  std::vector<std::vector<double>> x(3, std::vector<double>(99));
  std::vector<std::vector<double>> y = x;
  const auto at = [&](Communicator& c) { return x[c.rank()].data(); };
  EXPECT_NE(
      fails([&](Communicator& c, bool odd) { c.all_reduce(at(c), odd ? 7 : 8, Dtype::f64); }).find("rank 1"),
      std::string::npos);
  EXPECT_NE(fails([&](Communicator& c, bool odd) {
              c.all_reduce(at(c), 8, odd ? Dtype::f32 : Dtype::f64);
            }).find("rank 1 calls all_reduce of 8 x f32"),
            std::string::npos);
  EXPECT_NE(fails([&](Communicator& c, bool odd) { c.barrier(odd ? "a" : "b"); }).find("barrier (a)"),
            std::string::npos);
  EXPECT_NE(fails([&](Communicator& c, bool odd) {
              const std::vector<int64_t> sent = {1, 1, odd ? 2 : 1}, received = {1, 1, 1};
              c.all_to_all_v(at(c), sent, y[c.rank()].data(), received, Dtype::f64, "heads");
            }).find("rank 1 sends 2 elements to rank 2, which expects 1"),
            std::string::npos);
}

TEST(Checked, FingerprintsFollowTheSequence) {
  run_ranks(2, [](Communicator& comm) {
    const uint64_t start = comm.fingerprint();
    comm.barrier();
    const uint64_t after = comm.fingerprint();
    EXPECT_NE(start, after);
    require_same(&comm, "the collectives", std::to_string(after));
    if (comm.rank() == 1) comm.send_recv(nullptr, 0, 1, nullptr, 0, 1, Dtype::f32);  // no collective
    require_same(&comm, "the collectives", std::to_string(comm.fingerprint()));
  });
}

TEST(Checked, WrongCallsAreRefused) {
  const auto self = self_communicator();
  double x = 0;
  EXPECT_THROW(self->send(&x, 1, Dtype::f64, 1), Error);
  EXPECT_THROW(self->recv(&x, 1, Dtype::f64, 0), Error);
  EXPECT_THROW(self->broadcast(&x, 1, Dtype::f64, 1), Error);
  EXPECT_THROW(self->all_gather_v(&x, &x, std::vector<int64_t>{1, 1}, Dtype::f64), Error);
}

// --- failures

TEST(Failure, OneRanksExceptionReleasesTheOthers) {
  std::vector<Exit> seen(4, Exit::ok);
  const Error error = error_of([&] {
    run_ranks(4, [&](Communicator& comm) {
      const auto group = comm.split(comm.rank() % 2, 0);
      try {
        if (comm.rank() == 1) throw Error(Exit::numerics, "loss is not finite");
        if (comm.rank() == 2) group->barrier();  // rank 0 never comes
        double x = 0;
        if (comm.rank() == 3) group->recv(&x, 1, Dtype::f64, 0);
        comm.barrier();
      } catch (const Error& e) {
        seen[comm.rank()] = e.code;
        throw;
      }
    });
  });
  EXPECT_EQ(error.code, Exit::numerics);
  EXPECT_EQ(seen, (std::vector<Exit>{Exit::peer_lost, Exit::numerics, Exit::peer_lost, Exit::peer_lost}));
}

TEST(Failure, OtherExceptionsKeepTheirType) {
  EXPECT_THROW(run_ranks(2,
                         [](Communicator& comm) {
                           if (comm.rank() == 0) throw std::out_of_range("x");
                           comm.barrier();
                         }),
               std::out_of_range);
}

TEST(Failure, ARankThatReturnsEarlyIsALostPeer) {
  const Error error = error_of([] {
    run_ranks(3, [](Communicator& comm) {
      if (comm.rank() != 1) comm.barrier();
    });
  });
  EXPECT_EQ(error.code, Exit::peer_lost);
  EXPECT_NE(std::string(error.what()).find("rank 1 returned"), std::string::npos);
}

TEST(Failure, ADeadlockIsAHang) {
  const Error error = error_of([] {
    run_ranks(
        2,
        [](Communicator& comm) {
          double x = 0;
          if (comm.rank() == 0)
            comm.recv(&x, 1, Dtype::f64, 1);
          else
            comm.barrier();
        },
        std::chrono::seconds(1));
  });
  EXPECT_EQ(error.code, Exit::hang);
  EXPECT_NE(std::string(error.what()).find("rank 0 in recv, rank 1 in barrier"), std::string::npos)
      << error.what();
}

TEST(Failure, LeaveNamesTheCauseAndCallsBack) {
  const Error error = error_of([] {
    run_ranks(3, [](Communicator& comm) {
      if (comm.rank() == 0) {
        int calls = 0;
        comm.on_leave(
            [&](Exit code, int culprit, const std::string&) { calls += code == Exit::io && culprit == 0; });
        comm.leave(Exit::io, 0, "disk full");
        comm.leave(Exit::io, 0, "disk full");
        EXPECT_EQ(calls, 1);
      } else {
        const Error released = error_of([&] { comm.barrier(); });
        EXPECT_EQ(std::string(released.what()), "rank 0 failed: disk full");
      }
    });
  });
  EXPECT_EQ(error.code, Exit::io);
}

TEST(Failure, UnequalCountsAreFoundEvenUnchecked) {
  std::vector<float> x(8), y(100);
  EXPECT_THROW(run_ranks(2,
                         [&](Communicator& comm) {
                           std::vector<float> mine(9), all(18);
                           comm.all_gather(mine.data(), all.data(), comm.rank() == 0 ? 8 : 9, Dtype::f32);
                         }),
               Error);
  EXPECT_THROW(run_ranks(2,
                         [&](Communicator& comm) {
                           std::vector<float> mine(9);
                           if (comm.rank() == 0)
                             comm.send(mine.data(), 8, Dtype::f32, 1);
                           else
                             comm.recv(mine.data(), 9, Dtype::f32, 0);
                         }),
               Error);
}

}  // namespace
}  // namespace weft
