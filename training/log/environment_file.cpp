#include "training/log/environment_file.h"

#include <sys/utsname.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "autograd/check.h"
#include "training/checkpoint/files.h"
#include "training/log/clock.h"

namespace weft {
namespace {

std::string compiler() {
#if defined(__clang__)
  return text("clang ", __clang_major__, ".", __clang_minor__, ".", __clang_patchlevel__);
#elif defined(__GNUC__)
  return text("gcc ", __GNUC__, ".", __GNUC_MINOR__, ".", __GNUC_PATCHLEVEL__);
#else
  return "unknown";
#endif
}

}  // namespace

std::string build_commit() { return WEFT_COMMIT; }

std::string environment_json(const RunEnvironment& environment) {
  using Json = nlohmann::ordered_json;
  utsname system{};
  ::uname(&system);
  Json versions = {{"weft", WEFT_VERSION}, {"compiler", compiler()}};
  for (const auto& [name, version] : environment.versions) versions[name] = version;
  const Json json = {{"weft", "environment/1"},
                     {"commit", build_commit()},
                     {"versions", versions},
                     {"build_type", WEFT_BUILD_TYPE},
                     {"device", environment.device},
                     {"world", environment.world},
                     {"command_line", environment.command_line},
                     {"hostname", system.nodename},
                     {"system", text(system.sysname, " ", system.release, " ", system.machine)},
                     {"processors", std::thread::hardware_concurrency()},
                     {"start_time", iso_time(wall_seconds())}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + '\n';
}

void write_environment(const std::string& path, const RunEnvironment& environment) {
  write_file_atomically(path, environment_json(environment));
}

}  // namespace weft
