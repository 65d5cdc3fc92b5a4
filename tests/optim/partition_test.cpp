#include "optim/partition.h"

#include "tests/optim/example_store.h"

namespace weft {
namespace {

TEST(Partition, CoversEveryElementOnce) {
  const auto store = example_store(Dtype::bf16);
  for (const bool whole_matrices : {false, true})
    for (const int64_t parts : {1, 2, 3, 4, 7, 100}) {
      std::vector<int64_t> reached(store->groups().size(), 0);
      for (int64_t part = 0; part < parts; ++part)
        for (const Range& r : partition(*store, parts, part, whole_matrices)) {
          EXPECT_EQ(r.begin, reached[static_cast<size_t>(r.group)]);
          EXPECT_GT(r.size(), 0);
          EXPECT_EQ(r.begin % 16, 0);
          reached[static_cast<size_t>(r.group)] = r.end;
        }
      for (size_t g = 0; g < reached.size(); ++g)
        EXPECT_EQ(reached[g], store->groups()[g].trainable ? store->groups()[g].master.numel() : 0);
    }
}

TEST(Partition, KeepsMatricesWholeAndNearlyEqual) {
  ParameterStore store;
  for (int i = 0; i < 12; ++i) store.declare({text("w", i), {5, 3 + i % 2}, ParameterKind::matrix});
  store.commit();
  for (int64_t part = 0; part < 4; ++part) {
    const Ranges ranges = partition(store, 4, part, true);
    ASSERT_EQ(ranges.size(), 1u);
    const std::vector<ParameterPiece> found = pieces(store, ranges[0]);
    EXPECT_NEAR(static_cast<double>(found.size()), 3, 1);
    for (const ParameterPiece& p : found) EXPECT_EQ(p.count, p.entry->master.numel());
  }
}

TEST(Partition, PiecesNameWhatLiesWhere) {
  ParameterStore store;
  store.declare({"a", {5}, ParameterKind::vector});   // 0, padded to 16
  store.declare({"b", {20}, ParameterKind::vector});  // 16, padded to 48
  store.commit();
  const std::vector<ParameterPiece> found = pieces(store, {0, 3, 30});
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].entry->info.name, "a");
  EXPECT_EQ(found[0].begin, 3);
  EXPECT_EQ(found[0].count, 2);
  EXPECT_EQ(found[0].offset, 0);
  EXPECT_EQ(found[1].entry->info.name, "b");
  EXPECT_EQ(found[1].begin, 0);
  EXPECT_EQ(found[1].count, 14);
  EXPECT_EQ(found[1].offset, 13);
  EXPECT_TRUE(pieces(store, {0, 5, 16}).empty());
}

}  // namespace
}  // namespace weft
