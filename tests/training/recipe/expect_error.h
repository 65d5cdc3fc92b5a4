#pragma once
// Runs an action that has to fail and returns its Error.

#include <gtest/gtest.h>

#include "autograd/check.h"

namespace weft {

template <class Action>
Error error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    const std::string line = error.what() + error.where + error.advice;
    EXPECT_EQ(line.find('\n'), std::string::npos) << "an error has one line: " << line;
    return error;
  }
  ADD_FAILURE() << "no error";
  return Error(Exit::ok, "none");
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace weft

// The action fails with the code, at the place (exactly), with a message and an advice that contain these.
#define EXPECT_ERROR(action, code_, where_, what_, advice_)                          \
  do {                                                                               \
    const ::weft::Error error_ = ::weft::error_of([&] { action; });                  \
    EXPECT_EQ(static_cast<int>(error_.code), static_cast<int>(::weft::Exit::code_)); \
    EXPECT_EQ(error_.where, std::string(where_));                                    \
    EXPECT_TRUE(::weft::contains(error_.what(), what_)) << error_.what();            \
    EXPECT_TRUE(::weft::contains(error_.advice, advice_)) << error_.advice;          \
  } while (0)
