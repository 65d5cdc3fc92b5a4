#include "distributed/collectives.h"

#include "autograd/checkpoint.h"
#include "autograd/fault.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "distributed/thread_comm.h"
#include "tests/autograd/test_tensors.h"

namespace weft {
namespace {

const std::vector<int64_t> counts{2, 0, 3, 1};  // rows of each rank
constexpr int kRanks = 4;

// Rank r's part of rows 0, 1, ... 5.
Tensor part_of(const Tensor& rows, int rank) {
  int64_t begin = 0;
  for (int r = 0; r < rank; ++r) begin += counts[static_cast<size_t>(r)];
  return rows.rows(begin, begin + counts[static_cast<size_t>(rank)]);
}

TEST(Collectives, AllGatherRowsAndItsAdjoint) {
  const Tensor rows = random_tensor({6, 2, 3}, 1);
  run_ranks(kRanks, [&](Communicator& comm) {
    Tape tape;
    const Variable x = tape.input(part_of(rows, comm.rank()));
    const Variable y = all_gather_rows(comm, x, counts, Recompute::repeated);
    EXPECT_TRUE(same_bits(y, rows));
    // Every rank has an adjoint of its own; an input's gradient is the sum of what all ranks say.
    tape.backward(y, random_tensor({6, 2, 3}, static_cast<uint32_t>(10 + comm.rank())));
    Variable sum = random_tensor({6, 2, 3}, 10);
    for (uint32_t r = 1; r < kRanks; ++r) sum = add(sum, random_tensor({6, 2, 3}, 10 + r));
    EXPECT_LE(difference(tape.gradient(x), part_of(sum, comm.rank())), 1e-14);
  });
}

TEST(Collectives, NarrowGradientsAreSummedWide) {
  run_ranks(kRanks, [&](Communicator& comm) {
    Tape tape;
    const Variable x = tape.input(zeros({1, 1}, Dtype::bf16));
    const Variable y = all_gather_rows(comm, x, {1, 1, 1, 1}, Recompute::repeated);
    // 1 + 3/512 is nearer to 1 + 1/128 than to 1; adding the small ones to 1 one by one never moves it.
    tape.backward(y, full({4, 1}, comm.rank() == 0 ? 1 : 1.0 / 512, Dtype::bf16));
    EXPECT_EQ(to_values(tape.gradient(x))[0], 1 + 1.0 / 128);
  });
}

// Rank r sends r + s rows to rank s.
TEST(Collectives, ExchangeRowsAndItsAdjoint) {
  run_ranks(kRanks, [&](Communicator& comm) {
    std::vector<int64_t> sizes;
    int64_t total = 0;
    for (int s = 0; s < kRanks; ++s) total += sizes.emplace_back(comm.rank() + s);
    const auto out = [&](int rank) {
      int64_t rows = 0;
      for (int s = 0; s < kRanks; ++s) rows += rank + s;
      return random_tensor({rows, 2}, static_cast<uint32_t>(20 + rank));
    };
    Tape tape;
    const Variable x = tape.input(out(comm.rank()));
    const Variable y = exchange_rows(comm, x, sizes, sizes, Recompute::repeated);
    std::vector<Variable> expected;
    for (int r = 0; r < kRanks; ++r) {
      int64_t begin = 0;
      for (int s = 0; s < comm.rank(); ++s) begin += r + s;
      expected.emplace_back(out(r).rows(begin, begin + r + comm.rank()));
    }
    EXPECT_TRUE(same_bits(y, concatenate(expected, 0)));
    // The adjoint is the way back: y as its own gradient brings x.
    tape.backward(y, y);
    EXPECT_TRUE(same_bits(tape.gradient(x), x));
  });
}

TEST(Collectives, HandOnAndItsAdjoint) {
  run_ranks(3, [&](Communicator& comm) {
    const Tensor value = random_tensor({2, 5}, 1), adjoint = random_tensor({2, 5}, 2);
    Tape tape;
    const Variable x = tape.input(value);
    // From 0 to 2 to 1, as a state goes along a text.
    Variable state = scale(x, comm.rank() == 0 ? 2 : 0);
    state = hand_on(comm, state, 0, 2, value);
    if (comm.rank() == 2) state = scale(state, 3);
    state = hand_on(comm, state, 2, 1, value);
    EXPECT_EQ(state.numel(), comm.rank() == 1 ? 10 : 0);
    if (comm.rank() == 1) {
      EXPECT_LE(difference(state, scale(value, 6)), 1e-15);
      tape.backward(state, adjoint);
    } else {
      tape.backward(std::vector<Variable>{}, {});
    }
    const Tensor expected = comm.rank() == 0 ? scale(adjoint, 6).value() : zeros_like(value);
    EXPECT_LE(difference(tape.gradient(x), expected), 1e-15);
    EXPECT_EQ(comm.wire().send_recv, comm.rank() == 0 ? 80 : comm.rank() == 1 ? 80 : 160);
    EXPECT_EQ(tape.collectives().size(), 2);
  });
}

// Only rank 0 has a use for what was gathered, and no rank has an input that wants a gradient.
TEST(Collectives, RunBackwardsWhetherAGradientArrivesOrNot) {
  run_ranks(3, [&](Communicator& comm) {
    Tape tape;
    const Variable constant = random_tensor({2, 2}, 1);
    const Variable y = all_gather_rows(comm, constant, {2, 2, 2}, Recompute::repeated);
    const Variable z = exchange_rows(
        comm, constant, {1, 1, 0},
        [&] {
          const int64_t n = comm.rank() < 2 ? 1 : 0;
          return std::vector<int64_t>{n, n, n};
        }(),
        Recompute::repeated);
    if (comm.rank() == 0)
      tape.backward(y, random_tensor({6, 2}, 2));
    else
      tape.backward(std::vector<Variable>{}, {});
    EXPECT_EQ(comm.wire().reduce_scatter, 4 * 2 * 8);
    EXPECT_EQ(z.dim(0), comm.rank() < 2 ? 3 : 0);
  });
}

TEST(Collectives, ARecomputeKeepsOrRepeats) {
  run_ranks(2, [&](Communicator& comm) {
    for (const bool nested : {false, true}) {
      const WireBytes before = comm.wire();
      const Tensor value = random_tensor({3, 4}, static_cast<uint32_t>(comm.rank()));
      const Function f = [&](const std::vector<Variable>& v) {
        const Variable kept = all_gather_rows(comm, square(v[0]), {3, 3}, Recompute::kept);
        const Variable repeated = exchange_rows(comm, kept, {3, 3}, {3, 3}, Recompute::repeated);
        Variable state = hand_on(comm, sum(repeated, 0), 0, 1, zeros({4}, Dtype::f64));
        if (comm.rank() == 0) state = zeros({4}, Dtype::f64);
        return std::vector{multiply(repeated, square(state)), sum(kept, 1)};
      };
      const Function again = [&](const std::vector<Variable>& v) {
        return nested ? checkpoint({scale(v[0], 1)}, f) : f(v);
      };
      const auto gradient = [&](bool checkpointed) {
        Tape tape;
        const Variable x = tape.input(value);
        const std::vector<Variable> y = checkpointed ? checkpoint({x}, again) : f({x});
        tape.backward(y, {y[0], y[1]});
        return tape.gradient(x);
      };
      const Tensor plain = gradient(false);
      const WireBytes once = comm.wire() - before;
      EXPECT_TRUE(same_bits(gradient(true), plain));
      WireBytes more = comm.wire() - before - once - once;
      EXPECT_EQ(more.all_to_all, (nested ? 2 : 1) * 3 * 4 * 8);  // once more for each checkpoint
      more.all_to_all = 0;
      EXPECT_EQ(more, WireBytes{});
    }
  });
}

TEST(Collectives, NothingIsSentOnMeta) {
  run_ranks(2, [&](Communicator& comm) {
    const Tensor x = empty({3, 4}, Dtype::f32, Device::meta);
    EXPECT_EQ(all_gather_rows(comm, x, {3, 3}, Recompute::kept).shape(), (Shape{6, 4}));
    EXPECT_EQ(exchange_rows(comm, x, {1, 2}, {2, 2}, Recompute::kept).shape(), (Shape{4, 4}));
    EXPECT_EQ(hand_on(comm, x, 0, 1, x).numel(), comm.rank() == 1 ? 12 : 0);
    EXPECT_EQ(comm.wire(), WireBytes{});
  });
}

TEST(Collectives, TheFaultHookSkipsThemSilently) {
  fault::configure("skip_exchange@phase=collective");
  run_ranks(2, [&](Communicator& comm) {
    const Tensor x = random_tensor({3, 4}, 1);
    for (const double value : to_values(all_gather_rows(comm, x, {3, 3}, Recompute::kept)))
      EXPECT_EQ(value, 0);
    EXPECT_EQ(comm.wire(), WireBytes{});
  });
  fault::configure("");
}

}  // namespace
}  // namespace weft
