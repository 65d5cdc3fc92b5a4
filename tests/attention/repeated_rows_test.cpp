// Rows that stand for all tokens, asked for by ranks that are threads and share a model.

#include <gtest/gtest.h>

#include <thread>

#include "attention/mechanism.h"

namespace weft {
namespace {

TEST(RepeatedRows, AreOneRowForAllThatAskAtOnce) {
  constexpr int64_t tokens = 7;
  for (int round = 0; round < 200; ++round) {
    const RepeatedRows rows;
    std::vector<std::vector<const void*>> seen(4);
    std::vector<std::thread> ranks;
    for (auto& mine : seen)
      ranks.emplace_back([&rows, &mine] {
        for (const char* name : {"g", "decay", "ones"})
          for (const Dtype dtype : {Dtype::f32, Dtype::f64})
            mine.push_back(rows(name, {1, 2, 3}, tokens, dtype, Device::cpu).raw());
      });
    for (std::thread& rank : ranks) rank.join();
    for (const auto& other : seen) EXPECT_EQ(other, seen[0]);
  }
}

}  // namespace
}  // namespace weft
