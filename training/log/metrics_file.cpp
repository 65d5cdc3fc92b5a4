#include "training/log/metrics_file.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "autograd/check.h"
#include "training/checkpoint/files.h"
#include "training/log/clock.h"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

std::string line_of(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + '\n';
}

bool is_step(const Json& line, int64_t step) {
  const auto at = line.find("step");
  return !line.contains("event") && at != line.end() && at->is_number_integer() && at->get<int64_t>() == step;
}

bool stays(const Json& line, int64_t step, bool keep_events) {
  const auto at = line.find("step");
  if (at == line.end() || !at->is_number_integer() || at->get<int64_t>() <= step) return true;
  const auto event = line.find("event");
  if (event == line.end()) return false;
  return keep_events || *event == name_of(Event::fault) || *event == name_of(Event::resume);
}

std::string content_of(const std::string& path) {
  if (!std::filesystem::is_regular_file(path)) return {};  // whoever opens it for writing says what is wrong
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Calls f(line, where it begins, its JSON) for each line, without its end; no object where it is none.
template <class F>
void for_lines(const std::string& content, F f) {
  for (size_t begin = 0; begin < content.size();) {
    const size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view line = std::string_view(content).substr(begin, end - begin);
    const Json json = Json::parse(line, nullptr, false);
    f(line, begin, json.is_object() ? json : Json());
    begin = end + 1;
  }
}

void put_evaluation(Json& json, const StepRecord& r) {
  json.erase("val_stopped");
  if (r.val_loss) json["val_loss"] = *r.val_loss;
  if (r.val_bpb) json["val_bpb"] = *r.val_bpb;
  if (r.val_accuracy) json["val_accuracy"] = *r.val_accuracy;
  if (r.val_exact) json["val_exact"] = *r.val_exact;
  if (r.val_stopped) json["val_stopped"] = true;
}

}  // namespace

const char* name_of(Event event) {
  switch (event) {
    case Event::resume: return "resume";
    case Event::checkpoint: return "checkpoint";
    case Event::skip: return "skip";
    case Event::rewind: return "rewind";
    case Event::sample: return "sample";
    case Event::fault: return "fault";
  }
  return "unknown";
}

MetricsFile::MetricsFile(std::string path, std::optional<int64_t> resume_step, Warn warn)
    : path_(std::move(path)), warn_(std::move(warn)) {
  if (resume_step) prune(*resume_step, false);
  file_.emplace(path_, resume_step ? AppendFile::Open::append : AppendFile::Open::create, warn_);
}

void MetricsFile::step(const StepRecord& r) {
  Json json = {{"step", r.step},
               {"tokens", r.tokens},
               {"loss", r.loss},
               {"grad_norm", r.grad_norm},
               {"lr", r.lr},
               {"tokens_per_s", r.tokens_per_s},
               {"mfu", r.mfu.value_or(StepRecord::unknown)},
               {"step_s", r.step_s},
               {"data_s", r.data_s},
               {"comm_s", r.comm_s},
               {"peak_bytes", r.peak_bytes},
               {"time", r.time}};
  put_evaluation(json, r);
  file_->append(line_of(json));
}

void MetricsFile::event(Event event, int64_t step, const EventFields& fields) {
  Json json = {{"event", name_of(event)}, {"step", step}, {"time", wall_seconds()}};
  for (const auto& [key, value] : fields)
    std::visit([&json, &key = key](const auto& v) { json[key] = v; }, value);
  file_->append(line_of(json));
}

void MetricsFile::rewind(int64_t step) {
  file_.reset();
  prune(step, true);
  file_.emplace(path_, AppendFile::Open::append, warn_);
}

bool evaluation_was_stopped(const std::string& path, int64_t step) {
  bool stopped = false;
  for_lines(content_of(path), [&](std::string_view, size_t, const Json& json) {
    if (json.is_object() && is_step(json, step)) stopped = json.contains("val_stopped");
  });
  return stopped;
}

LastLearned last_learned(const std::string& path, int64_t step) {
  LastLearned last;
  bool refused = false;  // the step whose line comes next
  for_lines(content_of(path), [&](std::string_view, size_t, const Json& json) {
    if (!json.is_object()) return;
    if (json.contains("event")) {
      refused = json["event"] == "skip";
      return;
    }
    const auto number = [&](const char* key) {
      const auto at = json.find(key);
      return at != json.end() && at->is_number() ? at->get<double>() : NAN;
    };
    if (!std::exchange(refused, false) && number("step") <= static_cast<double>(step))
      last = {number("loss"), number("grad_norm")};
  });
  return last;
}

void MetricsFile::measured(const StepRecord& record) {
  std::string content;
  for_lines(content_of(path_), [&](std::string_view line, size_t, Json json) {
    if (json.is_object() && is_step(json, record.step)) {
      put_evaluation(json, record);
      content += line_of(json);
    } else {
      content.append(line) += '\n';
    }
  });
  file_.reset();
  try {
    write_file_atomically(path_, content);
  } catch (const Error& error) {
    warn_(text("cannot rewrite ", path_, ": ", error.what(), "; the evaluation after step ", record.step,
               " is not in it"));
  }
  file_.emplace(path_, AppendFile::Open::append, warn_);
}

void MetricsFile::prune(int64_t step, bool keep_events) {
  const std::string content = content_of(path_);
  std::string kept;
  std::optional<size_t> first_gone;
  bool damaged = false;  // the line before
  for_lines(content, [&](std::string_view line, size_t begin, const Json& json) {
    unreadable_ += damaged;  // a crash damages the last one alone
    damaged = !json.is_object();
    if (!damaged && stays(json, step, keep_events))
      kept.append(line) += '\n';
    else if (!first_gone)
      first_gone = begin;
  });
  if (kept == content) return;
  try {
    write_file_atomically(path_, kept);
  } catch (const Error& error) {
    // No room for a copy: losing lines is better than having a step twice.
    warn_(text("cannot rewrite ", path_, ": ", error.what(), "; its last lines are cut off"));
    const auto length = static_cast<off_t>(first_gone.value_or(content.size()));
    if (::truncate(path_.c_str(), length) != 0)
      throw Error(Exit::io, "cannot remove lines of steps that will be repeated", path_,
                  "move the file away");
  }
}

}  // namespace weft
