#pragma once
// Shared by the tests that save: a small model state cut over any number of ranks, and ranks as threads.

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "tests/training/checkpoint/support.h"
#include "training/checkpoint/folder.h"
#include "training/checkpoint/hash.h"
#include "training/checkpoint/load.h"

namespace weft::ckpt {

constexpr const char* test_run = "0123456789abcdef0123456789abcdef";

// Arrays of every type and of odd shapes; the values depend on the step.
struct State {
  explicit State(int64_t step, int64_t rows = 7) {
    std::vector<float> f(static_cast<size_t>(rows * 5));
    for (size_t i = 0; i < f.size(); ++i) f[i] = std::sin(static_cast<float>(i) + static_cast<float>(step));
    add("master.embed", Dtype::f32, {rows, 5}, f.data());
    add("master.a", Dtype::f32, {3}, f.data() + 2);
    add("moment.embed", Dtype::bf16, {rows, 5}, f.data());
    add("clock", Dtype::f64, {}, f.data());
    add("ids", Dtype::i32, {2, 1, 3}, f.data());
    add("nothing", Dtype::f32, {0, 4}, nullptr);
  }

  void add(const char* name, Dtype dtype, std::vector<int64_t> shape, const void* data) {
    arrays.emplace_back(name, dtype, std::move(shape));
    if (data) std::memcpy(arrays.back().data.get(), data, static_cast<size_t>(arrays.back().bytes()));
  }

  // What `rank` of `world` holds: an equal range of each flattened array, as sharded optimizer state is cut.
  std::vector<ArrayPiece> pieces(int64_t rank, int64_t world) const {
    std::vector<ArrayPiece> out;
    for (const OwnedArray& array : arrays) {
      const int64_t begin = array.count() * rank / world, end = array.count() * (rank + 1) / world;
      if (end == begin && rank > 0) continue;
      if (end == begin && array.count() > 0) continue;
      out.emplace_back(array.name, array.dtype, array.shape, begin, end - begin,
                       array.data.get() + begin * size_of(array.dtype));
    }
    return out;
  }

  void expect_equal(const Checkpoint& checkpoint) const {
    ASSERT_EQ(checkpoint.arrays().size(), arrays.size());
    for (const OwnedArray& array : arrays) {
      const OwnedArray read = checkpoint.read(array.name);
      EXPECT_EQ(read.dtype, array.dtype);
      EXPECT_EQ(read.shape, array.shape);
      EXPECT_EQ(std::memcmp(read.data.get(), array.data.get(), static_cast<size_t>(array.bytes())), 0)
          << array.name;
    }
  }

  std::vector<OwnedArray> arrays;
};

inline SaveRequest request_for(const std::string& run_folder, int64_t step, int64_t keep = 10) {
  SaveRequest request;
  request.run_folder = run_folder;
  request.manifest.run = test_run;
  request.manifest.step = step;
  request.manifest.recipe_hash = "recipe";
  request.manifest.order_hash = "order";
  request.manifest.extra = R"({"cursor":[1,2.5],"rng":{"counter":18446744073709551615}})";
  request.keep = keep;
  return request;
}

// Calls f(peers) on `world` threads; rethrows what rank 0 threw.
template <class F>
void on_ranks(int64_t world, F f) {
  std::barrier barrier(world);
  std::atomic<bool> votes[2] = {true, true};  // of this round and the next
  std::vector<std::string> said(static_cast<size_t>(world));
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < world; ++rank)
    threads.emplace_back([&, rank] {
      auto round = std::make_shared<int>(0);
      const auto agree = [&, round](bool ok) {
        const int now = (*round)++ & 1;
        if (!ok) votes[now] = false;
        barrier.arrive_and_wait();
        const bool all = votes[now];
        barrier.arrive_and_wait();
        votes[now] = true;
        return all;
      };
      const auto tell = [&, rank](const std::string& mine) {
        said[static_cast<size_t>(rank)] = mine;
        barrier.arrive_and_wait();
        std::vector<std::string> all = said;
        barrier.arrive_and_wait();
        return all;
      };
      const Peers peers{rank, world, agree, tell};
      try {
        f(peers);
      } catch (...) {
        if (rank == 0) first = std::current_exception();
      }
    });
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

inline void save_step(const std::string& run_folder, int64_t step, int64_t world = 1, int64_t keep = 10,
                      int64_t rows = 7) {
  const State state(step, rows);
  on_ranks(world, [&](const Peers& peers) {
    SaveRequest request = request_for(run_folder, step, keep);
    request.pieces = state.pieces(peers.rank, peers.size);
    save(request, peers);
  });
}

// Names in the folder `checkpoints`.
inline std::vector<std::string> entries(const std::string& run_folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(run_folder + "/checkpoints"))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace weft::ckpt
