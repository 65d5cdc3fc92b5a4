#include "autograd/start_span.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <mutex>
#include <sstream>

namespace weft {
namespace {

std::mutex mutex;
std::vector<std::pair<std::string, double>>& spans() {
  static std::vector<std::pair<std::string, double>> all;
  return all;
}

}  // namespace

StartSpan::~StartSpan() {
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const std::lock_guard lock(mutex);
  auto& all = spans();
  auto it = std::find_if(all.begin(), all.end(), [&](const auto& s) { return s.first == name_; });
  if (it == all.end()) it = all.insert(all.end(), {name_, 0.0});
  it->second += seconds;
}

std::vector<std::pair<std::string, double>> start_spans() {
  const std::lock_guard lock(mutex);
  return spans();
}

// Linux knows when a process began in ticks since the machine did (proc(5), field 22 of stat; the second is a
// name in brackets).
double process_age() {
  std::ifstream file("/proc/self/stat");
  std::string text;
  std::getline(file, text);
  std::istringstream fields(text.substr(std::min(text.size(), text.rfind(')') + 1)));
  std::string field;
  for (int i = 3; i <= 22 && fields >> field; ++i) {
  }
  double up = 0;
  std::ifstream("/proc/uptime") >> up;
  return up - std::strtod(field.c_str(), nullptr) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

}  // namespace weft
