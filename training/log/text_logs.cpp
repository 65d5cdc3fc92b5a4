#include "training/log/text_logs.h"

#include <cstdio>
#include <utility>

#include "autograd/check.h"
#include "training/log/clock.h"
#include "training/log/printable.h"

namespace weft {
namespace {

std::string rank_name(int rank) {
  char name[32];
  std::snprintf(name, sizeof name, "/rank-%04d.txt", rank);
  return name;
}

const char* name_of(Level level) {
  switch (level) {
    case Level::info: return "info";
    case Level::warning: return "warning";
    case Level::error: return "error";
  }
  return "unknown";
}

}  // namespace

RankLog::RankLog(const std::string& log_folder, int rank, Warn warn)
    : file_(log_folder + rank_name(rank), AppendFile::Open::append, std::move(warn)) {}

void RankLog::write(Level level, const std::string& message) {
  file_.append(text(iso_time(wall_seconds()), " ", name_of(level), " ", printable(message), "\n"));
}

SamplesFile::SamplesFile(const std::string& path, Warn warn)
    : file_(path, AppendFile::Open::append, std::move(warn)) {}

void SamplesFile::write(int64_t step, const std::string& sample) {
  file_.append(text("=== step ", step, "\n", printable(sample, true), "\n\n"));
}

}  // namespace weft
