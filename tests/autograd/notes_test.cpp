#include "autograd/notes.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

TEST(Notes, AreTakenOnce) {
  take_notes();
  note_once("notes test: one");
  note_once("notes test: two");
  note_once("notes test: one");
  EXPECT_EQ(take_notes(), (std::vector<std::string>{"notes test: one", "notes test: two"}));
  note_once("notes test: two");
  EXPECT_TRUE(take_notes().empty());
}

}  // namespace
}  // namespace weft
