#include "training/log/failure.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <new>
#include <nlohmann/json.hpp>

#include "training/log/printable.h"

namespace weft {
namespace {

TEST(Printable, IsUtf8WithoutControlCharacters) {
  EXPECT_EQ(printable("a\tb\r\nc\x7f"), "a b  c ");
  EXPECT_EQ(printable("a\tb\nc", true), "a\tb\nc");
  EXPECT_EQ(printable(std::string_view("a\0b", 3)), "a b");
  EXPECT_EQ(printable("gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80"), "gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80");
  EXPECT_EQ(printable("\xff\x41"), "\xef\xbf\xbd\x41");
  EXPECT_EQ(printable("\xc3"), "\xef\xbf\xbd");
  EXPECT_EQ(printable("\xc2\x9b\x31m"), " 1m");  // C1: the one-character form of ESC [
  EXPECT_EQ(printable("a\xe2\x80\xa8"
                      "b\xe2\x80\xa6"),
            "a b\xe2\x80\xa6");  // a line separator; an ellipsis
  EXPECT_EQ(printable(""), "");
}

TEST(Failure, TheLastLine) {
  EXPECT_EQ(error_line(Error(Exit::recipe, "unknown key optim.lrr", "r.yaml:3:5", "write optim.lr")),
            "weft: unknown key optim.lrr (r.yaml:3:5); write optim.lr");
  EXPECT_EQ(error_line(Error(Exit::internal, "two\nlines\x1b[0m \xff")), "weft: two lines [0m \xef\xbf\xbd");
  testing::internal::CaptureStderr();
  print_error(Error(Exit::io, "cannot write", "a.h5"));
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "weft: cannot write (a.h5)\n");
}

TEST(Failure, Json) {
  const Error error(Exit::recipe, "unknown \"key\"", "r.yaml:3:5", "write\noptim.lr \xff");
  EXPECT_EQ(failure_json("train/1", error, 0),
            "{\"weft\":\"train/1\",\"exit\":78,\"error\":{\"what\":\"unknown \\\"key\\\"\","
            "\"where\":\"r.yaml:3:5\",\"do\":\"write optim.lr \xef\xbf\xbd\",\"rank\":0,\"step\":null},"
            "\"status\":\"failed\"}");
  const auto json = nlohmann::json::parse(failure_json("distill/1", Error(Exit::numerics, "NaN"), 3, 17));
  EXPECT_EQ(json["exit"], 80);
  EXPECT_EQ(json["error"]["rank"], 3);
  EXPECT_EQ(json["error"]["step"], 17);
  EXPECT_EQ(json["error"]["where"], "");
}

TEST(Failure, AnyExceptionIsAnError) {
  EXPECT_EQ(as_error(Error(Exit::data, "x", "y", "z")).advice, "z");
  EXPECT_EQ(as_error(std::bad_alloc()).code, Exit::internal);
  EXPECT_STREQ(as_error(std::bad_alloc()).what(), "out of memory");
  EXPECT_STREQ(as_error(std::runtime_error("odd")).what(), "odd");
  const Error files = as_error(std::filesystem::filesystem_error(
      "status", "locked/x", std::make_error_code(std::errc::permission_denied)));
  EXPECT_EQ(files.code, Exit::io) << "the disk's fault, not the program's";
  EXPECT_STREQ(files.what(), "Permission denied");
  EXPECT_EQ(files.where, "locked/x");
}

}  // namespace
}  // namespace weft
