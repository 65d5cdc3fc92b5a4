#pragma once
// What main.cpp lists: a command is one file in tools/commands and one line there.

#include <functional>
#include <string>
#include <vector>

#include "autograd/check.h"

namespace weft {

using Words = std::vector<std::string>;

struct Command {
  const char* name;
  const char* summary;             // a line of `weft --help`
  int (*run)(const Words& words);  // the words after the name; returns the exit code, or throws Error
  bool ranks = false;              // works on several ranks; of any other command, only rank 0 runs
};

const std::vector<Command>& commands();
// Null where there is no such command.
const Command* find_command(const std::string& name);

// Whether the words ask for one line of JSON, --json or --json-summary: then it comes on failure, too.
bool wants_json(const Words& words);

// A result, on stdout. Error (io) where it cannot be written: a full disk must not look like success.
void print(const std::string& text);
// From here on nothing is printed: of several ranks rank 0 alone speaks.
void print_nothing();
// What a command would print, as a text.
std::string printed_by(const std::function<void()>& command);
// The line of JSON of a failure. Where nobody can read it, the exit code has to do: it stays that of the
// failure.
void print_failure(const std::string& line);
// A model's text: as it is for a file or a pipe; for a terminal, which would obey them, without control
// characters.
std::string for_reader(const std::string& text);
// Warnings, a line each on stderr.
void print_warnings(const std::vector<std::string>& warnings);
// Whether anything was: a result that is out is not followed by another one.
bool anything_printed();

}  // namespace weft
