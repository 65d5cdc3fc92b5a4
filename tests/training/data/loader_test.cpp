#include "training/data/loader.h"

#include "fixtures.h"
#include "training/data/stories.h"

namespace weft {
namespace {

class LoaderTest : public testing::Test {
 protected:
  LoaderTest()
      : data_({{open_corpus({write_file(dir_ / "a.txt", story_corpus(1, 20'000))}, byte_options()), 2},
               {open_corpus({write_file(dir_ / "b.txt", story_corpus(2, 10'000))}, byte_options()), 1}},
              96) {}

  Batch expected(int64_t step, int64_t per_step) const {
    return data_.batch(data_.order(3).step(step, per_step));
  }

  TempFolder dir_;
  Dataset data_;
};

void expect_equal(const Batch& a, const Batch& b) {
  EXPECT_EQ(a.samples, b.samples);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.targets, b.targets);
  EXPECT_EQ(a.offsets, b.offsets);
}

TEST_F(LoaderTest, HandsOutTheGlobalBatchOfEachStep) {
  Loader loader(data_, data_.order(3), {5, 0, 5, 0, 2});
  for (int64_t step = 0; step < 200; ++step) expect_equal(loader.next(), expected(step, 5));
}

TEST_F(LoaderTest, ResumesWhereItStopped) {
  Loader loader(data_, data_.order(3), {5, 0, 5, 77, 3});
  for (int64_t step = 77; step < 120; ++step) expect_equal(loader.next(), expected(step, 5));
}

TEST_F(LoaderTest, AnyWorldSeesTheSameGlobalBatch) {
  const int64_t per_step = 7;
  for (const int64_t world : {1, 2, 3, 7, 9}) {
    std::vector<std::unique_ptr<Loader>> ranks;
    for (int64_t r = 0; r < world;
         ++r)  // uneven shares, and empty ones where there are more ranks than samples
      ranks.push_back(std::make_unique<Loader>(
          data_, data_.order(3),
          Loader::Config{per_step, per_step * r / world, per_step * (r + 1) / world, 0, 2}));
    for (int64_t step = 0; step < 20; ++step) {
      Batch joined;
      joined.offsets = {0};
      for (auto& rank : ranks) {
        const Batch batch = rank->next();
        const auto at = static_cast<int64_t>(joined.tokens.size());
        joined.tokens.insert(joined.tokens.end(), batch.tokens.begin(), batch.tokens.end());
        joined.targets.insert(joined.targets.end(), batch.targets.begin(), batch.targets.end());
        joined.samples.insert(joined.samples.end(), batch.samples.begin(), batch.samples.end());
        for (size_t d = 1; d < batch.offsets.size(); ++d) joined.offsets.push_back(at + batch.offsets[d]);
      }
      expect_equal(joined, expected(step, per_step));
    }
  }
}

TEST_F(LoaderTest, StopsWhileItWaits) {
  for (int i = 0; i < 50; ++i) Loader loader(data_, data_.order(3), {4, 0, 4, 0, 1});
}

TEST_F(LoaderTest, AnErrorReachesTheTrainingLoop) {
  const std::vector<uint32_t> tokens(5'000'000, 1);
  const auto path = write_file(dir_ / "t.bin", llmc_file(tokens, false));
  const Dataset data({{open_corpus({path}, token_options(10)), 1}}, 1000);
  Loader loader(data, data.order(1), {1, 0, 1, 0, 2});
  loader.next();
  std::filesystem::resize_file(path, 100);
  Error error(Exit::ok, "");
  for (int i = 0; i < 10 && error.code == Exit::ok; ++i) error = error_of([&] { loader.next(); });
  EXPECT_EQ(error.code, Exit::data);
  EXPECT_EQ(error_of([&] { loader.next(); }).code, Exit::data);  // and goes on doing so
}

TEST_F(LoaderTest, SharesOutsideTheBatchAreRefused) {
  EXPECT_EQ(error_of([&] { Loader(data_, data_.order(3), {4, 2, 5, 0, 1}); }).code, Exit::internal);
}

}  // namespace
}  // namespace weft
