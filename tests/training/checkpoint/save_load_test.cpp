#include <sys/resource.h>
#include <atomic>
#include <csignal>
#include <cstdio>

#include "autograd/fault.h"
#include "autograd/rank_error.h"
#include "tests/training/checkpoint/saving.h"
#include "training/checkpoint/shard.h"

namespace weft::ckpt {
namespace {

class SaveLoadTest : public testing::Test {
 protected:
  void TearDown() override { fault::configure(""); }
  TemporaryFolder run_;
};

TEST_F(SaveLoadTest, RoundTrip) {
  save_step(run_.path(), 12);
  EXPECT_EQ(entries(run_.path()), std::vector<std::string>{"step-12"});
  EXPECT_EQ(read_bytes(run_ / "latest"), "checkpoints/step-12\n");
  const Loaded loaded = load(run_.path());
  EXPECT_TRUE(loaded.warnings.empty());
  State(12).expect_equal(loaded.checkpoint);
  const Manifest& manifest = loaded.checkpoint.manifest();
  EXPECT_EQ(manifest.run, test_run);
  EXPECT_EQ(manifest.step, 12);
  EXPECT_EQ(manifest.world, 1);
  EXPECT_EQ(manifest.recipe_hash, "recipe");
  EXPECT_EQ(manifest.extra, request_for("", 0).manifest.extra);
  EXPECT_FALSE(loaded.checkpoint.contains("absent"));
  expect_error(Exit::data, {"absent"}, [&] { loaded.checkpoint.read("absent"); });

  SaveRequest next = request_for(run_.path(), 13);
  next.manifest = manifest;  // as a resumed run does
  next.manifest.step = 13;
  const State state(13);
  next.pieces = state.pieces(0, 1);
  save(next);
  state.expect_equal(load(run_.path(), {.strict = true}).checkpoint);
}

TEST_F(SaveLoadTest, AnyWorldReadsWhatAnyWorldWrote) {
  const State state(3, 11);
  for (const int64_t writers : {1, 2, 3, 4, 8, 40}) {
    TemporaryFolder run;
    save_step(run.path(), 3, writers, 10, 11);
    for (const int64_t readers : {1, 2, 3, 5}) {
      std::atomic<int64_t> ranges = 0;
      on_ranks(readers, [&](const Peers& peers) {
        const Loaded loaded = load(run.path(), {}, peers);
        EXPECT_EQ(loaded.checkpoint.manifest().world, writers);
        state.expect_equal(loaded.checkpoint);
        for (const ArrayPiece& piece : state.pieces(peers.rank, peers.size)) {
          std::vector<std::byte> out(static_cast<size_t>(piece.bytes()));
          loaded.checkpoint.read(piece.name, piece.begin, piece.count, out.data());
          EXPECT_TRUE(out.empty() || std::memcmp(out.data(), piece.data, out.size()) == 0) << piece.name;
          ++ranges;
        }
      });
      EXPECT_GE(ranges, 6);
    }
  }
}

TEST_F(SaveLoadTest, WeightsHashIsThatOfTheArraysWhateverTheLayout) {
  const State state(3);
  std::vector<NamedArray> masters = {{"embed", Dtype::f32, {7, 5}, state.arrays[0].data.get()},
                                     {"a", Dtype::f32, {3}, state.arrays[1].data.get()}};
  // By hand: name, shape, data, in name order.
  Hash128 expected;
  const int64_t shape_a[] = {3}, shape_embed[] = {7, 5};
  expected.add("a");
  expected.add(shape_a, sizeof shape_a);
  expected.add(masters[1].data, 12);
  expected.add("embed");
  expected.add(shape_embed, sizeof shape_embed);
  expected.add(masters[0].data, 140);
  EXPECT_EQ(weights_hash(masters), expected.hex());
  std::swap(masters[0], masters[1]);
  EXPECT_EQ(weights_hash(masters), expected.hex());
  for (const int64_t world : {1, 3}) {
    save_step(run_.path(), 3, world);
    EXPECT_EQ(load(run_.path()).checkpoint.weights_hash("master."), expected.hex());
  }
  masters[0].shape = {3, 1};
  EXPECT_NE(weights_hash(masters), expected.hex());
}

TEST_F(SaveLoadTest, HashIsXxh3) {
  // Published vector: XXH3-128 of no bytes.
  EXPECT_EQ(hash128("", 0), "99aa06d3014798d86001c324468d497f");
  Hash128 parts;
  parts.add("chec");
  parts.add("kpoint");
  EXPECT_EQ(parts.hex(), hash128("checkpoint", 10));
}

TEST_F(SaveLoadTest, KeepsTheNewestAndDeletesNothingBeforeTheNewOneIsGood) {
  for (int64_t step = 1; step <= 4; ++step) save_step(run_.path(), step, 1, 2);
  EXPECT_EQ(entries(run_.path()), (std::vector<std::string>{"step-3", "step-4"}));
  fault::configure("eio@phase=save.fsync");
  EXPECT_THROW(save_step(run_.path(), 5, 1, 1), Error);
  EXPECT_EQ(entries(run_.path()), (std::vector<std::string>{"step-3", "step-4"}));
  fault::configure("");
  save_step(run_.path(), 5, 1, 0);  // at least one stays
  EXPECT_EQ(entries(run_.path()), std::vector<std::string>{"step-5"});
}

TEST_F(SaveLoadTest, ARewoundRunReplacesItsStepsAndIsFollowedAfterARestart) {
  for (const int64_t step : {10, 20, 30}) save_step(run_.path(), step);
  write_latest(run_.path(), 10);
  EXPECT_EQ(load(run_.path()).checkpoint.manifest().step, 10);
  save_step(run_.path(), 20, 2, 2);
  const Loaded loaded = load(run_.path());
  EXPECT_EQ(loaded.checkpoint.manifest().step, 20);
  EXPECT_EQ(loaded.checkpoint.manifest().world, 2);
  EXPECT_EQ(entries(run_.path()), (std::vector<std::string>{"step-10", "step-20", "step-30"}));
}

TEST_F(SaveLoadTest, EveryInjectedErrorLeavesTheOlderCheckpointAndNothingElse) {
  for (const int64_t world : {1, 3}) {
    TemporaryFolder run;
    save_step(run.path(), 1, world);
    for (const char* kind : {"enospc", "eio"})
      for (const char* phase : {"save.data", "save.mid", "save.fsync", "save.manifest", "save.rename"})
        for (int64_t rank = 0; rank < world; ++rank) {
          const std::string late = "save.manifest save.rename";  // where rank 0 alone acts
          if (rank > 0 && late.find(phase) != std::string::npos) continue;
          fault::configure(text(kind, "@rank=", rank, ",phase=", phase));
          const State state(2);
          std::atomic<int> failed = 0;
          on_ranks(world, [&](const Peers& peers) {
            fault::set_position(static_cast<int>(peers.rank), 2);
            SaveRequest request = request_for(run.path(), 2);
            request.pieces = state.pieces(peers.rank, peers.size);
            try {
              save(request, peers);
            } catch (const Error& error) {
              EXPECT_EQ(error.code, Exit::io);
              EXPECT_NE(std::string(error.what()).find("(injected)"), std::string::npos) << error.what();
              EXPECT_EQ(error.advice, "unset WEFT_FAULT");
              const auto* other = dynamic_cast<const RankError*>(&error);
              EXPECT_EQ(other != nullptr ? other->rank : peers.rank, rank);
              ++failed;
            }
          });
          fault::configure("");
          EXPECT_EQ(failed, world) << kind << " " << phase << " " << rank;
          EXPECT_EQ(entries(run.path()), std::vector<std::string>{"step-1"})
              << kind << " " << phase << " " << rank;
          State(1).expect_equal(load(run.path(), {.strict = true}).checkpoint);
        }
    save_step(run.path(), 2, world);
    State(2).expect_equal(load(run.path(), {.strict = true}).checkpoint);
  }
}

TEST_F(SaveLoadTest, APeerThatVanishesLeavesOnlyATemporaryFolder) {
  save_step(run_.path(), 1);
  for (const int survive : {0, 1, 2}) {  // the agreement at which the peer is lost
    const State state(2);
    SaveRequest request = request_for(run_.path(), 2);
    request.pieces = state.pieces(0, 1);
    int calls = 0;
    const Peers peers{0, 1, [&](bool ok) {
                        if (calls++ == survive) throw Error(Exit::peer_lost, "rank 1 is gone");
                        return ok;
                      }};
    expect_error(Exit::peer_lost, {"rank 1"}, [&] { save(request, peers); });
    const int64_t step = load(run_.path(), {.strict = true}).checkpoint.manifest().step;
    EXPECT_EQ(step, survive == 2 ? 2 : 1);  // after the commit it counts
    clean(run_.path());
    EXPECT_EQ(entries(run_.path()).size(), static_cast<size_t>(step));
  }
}

TEST_F(SaveLoadTest, PiecesThatDoNotTileAreRefusedBeforeTheCommit) {
  save_step(run_.path(), 1);
  const std::vector<float> data(6, 1.0f);
  const auto attempt = [&](const std::vector<ArrayPiece>& pieces, const std::string& word) {
    SaveRequest request = request_for(run_.path(), 2);
    request.pieces = pieces;
    expect_error(Exit::data, {"w", word}, [&] { save(request); });
    EXPECT_EQ(entries(run_.path()), std::vector<std::string>{"step-1"});
  };
  const auto piece = [&](int64_t begin, int64_t count, Dtype dtype = Dtype::f32) {
    return ArrayPiece("w", dtype, {2, 3}, begin, count, data.data());
  };
  attempt({piece(0, 2), piece(3, 3)}, "missing from element 2");
  attempt({piece(0, 2)}, "missing from element 2");
  attempt({piece(1, 5)}, "missing from element 0");
  attempt({piece(0, 4), piece(3, 3)}, "held twice from element 3");
  attempt({piece(0, 4), piece(4, 2, Dtype::i32)}, "disagree");
  SaveRequest outside = request_for(run_.path(), 2);
  outside.pieces = {piece(4, 3)};
  expect_error(Exit::internal, {"outside"}, [&] { save(outside); });
}

TEST_F(SaveLoadTest, AFolderThatCannotBeMade) {
  write_bytes(run_ / "file", "");
  expect_error(Exit::cannot_create, {}, [&] { save_step(run_ / "file", 1); });
}

TEST_F(SaveLoadTest, ADiskThatIsFullInTheMiddleOfAShard) {
  save_step(run_.path(), 1);
  const int status = wait_for(in_child([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    rlimit limit{};
    ::getrlimit(RLIMIT_FSIZE, &limit);
    const rlim_t before = limit.rlim_cur;
    limit.rlim_cur = 100'000;
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const auto open_files = [] {
      return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
    };
    const auto files_before = open_files();
    for (int i = 0; i < 3; ++i) try {
        save_step(run_.path(), 2, 1, 10, 40'000);
        ::_exit(3);
      } catch (const Error& error) {
        if (error.code != Exit::io || std::string(error.what()).find("File too large") == std::string::npos) {
          std::fprintf(stderr, "%s\n", error.what());
          ::_exit(4);
        }
      }
    if (entries(run_.path()).size() != 1) ::_exit(5);
    if (open_files() != files_before) ::_exit(6);
    limit.rlim_cur = before;
    ::setrlimit(RLIMIT_FSIZE, &limit);
    save_step(run_.path(), 3, 1, 10, 40'000);  // the same process can go on
  }));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  State(3, 40'000).expect_equal(load(run_.path(), {.strict = true}).checkpoint);
  State(1).expect_equal(load(run_.path(), {.step = 1}).checkpoint);
}

}  // namespace
}  // namespace weft::ckpt
