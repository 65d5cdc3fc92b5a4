#include "training/checkpoint/load.h"

#include <algorithm>
#include <filesystem>

#include "autograd/fault.h"
#include "training/checkpoint/files.h"
#include "training/checkpoint/folder.h"
#include "training/checkpoint/hash.h"

namespace weft::ckpt {
namespace {

[[noreturn]] void refuse(const std::string& what, const std::string& where) {
  throw Error(Exit::data, what, where, "");
}

void verify_file(const std::string& folder, const FileDigest& file, const Manifest& manifest,
                 const Peers& peers) {
  const std::string path = folder + "/" + file.name;
  if (!exists(path)) refuse("is missing", path);
  if (const int64_t bytes = File::open_read(path).size(); bytes != file.bytes)
    refuse(text("has ", bytes, " bytes, the manifest says ", file.bytes), path);
  const std::string hash = hash_file(path, peers.pulse);
  if (hash == file.xxh3) return;
  for (const FileDigest& other : manifest.files)
    if (hash == other.xxh3) refuse("holds the shard " + other.name, path);
  refuse(text("hash ", hash, ", the manifest says ", file.xxh3, ": damaged, or of another run"), path);
}

// The steps to try, best first: `latest`, then the ones before it, then the ones after it (of a run that was
// rewound, or whose writer died before it replaced `latest`).
std::vector<int64_t> candidates(const std::string& run_folder, const LoadOptions& options,
                                std::vector<std::string>& warnings) {
  if (options.step) return {*options.step};
  std::vector<int64_t> steps = list_steps(run_folder);
  std::reverse(steps.begin(), steps.end());
  const std::optional<int64_t> latest = read_latest(run_folder);
  if (!latest) {
    if (!steps.empty() && options.strict)
      throw Error(Exit::no_checkpoint, "`latest` is missing or damaged", run_folder + "/latest",
                  "set checkpoint.strict=false to take the newest good step");
    if (!steps.empty())
      warnings.push_back(run_folder + "/latest is missing or damaged: taking the newest good step");
    return steps;
  }
  std::stable_partition(steps.begin(), steps.end(), [&](int64_t step) { return step <= *latest; });
  if (steps.empty() || steps.front() != *latest) steps.insert(steps.begin(), *latest);
  if (options.strict) steps.resize(1);
  return steps;
}

// One step, by all peers. Nothing if any of them refuses it; `warnings` then has this rank's reason, or that
// of the first that refused it.
std::optional<Checkpoint> attempt(const std::string& run_folder, int64_t step, const LoadOptions& options,
                                  const Peers& peers, std::vector<std::string>& warnings) {
  const std::string folder = step_folder(run_folder, step);
  std::optional<Manifest> manifest;
  std::optional<Checkpoint> checkpoint;
  std::exception_ptr other_format;
  const std::string refused = text("checkpoint of step ", step, " refused");
  const auto together = [&](auto stage) {
    std::string reason;
    try {
      stage();
    } catch (const Error& error) {
      if (error.code == Exit::no_checkpoint) other_format = std::current_exception();
      reason = error.where + ": " + error.what();
      warnings.push_back(refused + ": " + reason);
    }
    if (peers.agree(reason.empty())) return true;
    const std::vector<std::string> all = peers.tell(reason);
    const auto first = std::find_if(all.begin(), all.end(), [](const auto& said) { return !said.empty(); });
    if (reason.empty() && first != all.end())
      warnings.push_back(text(refused, " on rank ", first - all.begin(), ": ", *first));
    return false;
  };
  const bool good = together([&] { manifest = verify(folder, step, options.run, peers); }) &&
                    together([&] { checkpoint.emplace(folder, *manifest); });
  // Every rank reads the same MANIFEST, so all of them leave here or none.
  if (other_format) std::rethrow_exception(other_format);
  if (!good) checkpoint.reset();
  return checkpoint;
}

}  // namespace

Named named(const std::string& path) {
  std::filesystem::path folder(path);
  if (!folder.has_filename()) folder = folder.parent_path();  // step-10/
  const std::filesystem::path checkpoints = folder.parent_path();
  if (checkpoints.filename() != "checkpoints") return {path};
  const std::string run = checkpoints.has_parent_path() ? checkpoints.parent_path().string() : ".";
  for (const int64_t step : list_steps(run))
    if (std::filesystem::path(step_folder(run, step)).filename() == folder.filename()) return {run, step};
  return {path};
}

Manifest verify(const std::string& folder, int64_t step, const std::string& run, const Peers& share) {
  const std::string path = folder + "/MANIFEST";
  if (!exists(path)) refuse("is missing", path);
  Manifest manifest = parse_manifest(read_text_file(path, longest_manifest), path);
  if (manifest.step != step) refuse(text("is of step ", manifest.step, ", the folder says ", step), path);
  if (!run.empty() && manifest.run != run)
    refuse(text("belongs to run ", manifest.run, ", not to ", run), path);
  if (manifest.world < 1 || manifest.files.size() != static_cast<size_t>(manifest.world))
    refuse(text("names ", manifest.files.size(), " files for ", manifest.world, " ranks"), path);
  for (size_t i = static_cast<size_t>(share.rank); i < manifest.files.size();
       i += static_cast<size_t>(share.size))
    verify_file(folder, manifest.files[i], manifest, share);
  return manifest;
}

Loaded load(const std::string& run_folder, const LoadOptions& options, const Peers& peers) {
  fault::point(fault::Phase::load);
  std::vector<std::string> warnings;
  const std::vector<int64_t> steps = candidates(run_folder, options, warnings);
  std::vector<int64_t> damaged;
  for (size_t i = 0;; ++i) {
    // All ranks go on together, even if a slow file system shows them different folders.
    if (peers.agree(i < steps.size()) == false) break;
    if (auto found = attempt(run_folder, steps[i], options, peers, warnings))
      return {std::move(*found), warnings, damaged};
    damaged.push_back(steps[i]);
  }
  std::string what = text("no usable checkpoint", options.step ? text(" of step ", *options.step) : "");
  for (const std::string& warning : warnings) what += "; " + warning;
  throw Error(Exit::no_checkpoint, what, run_folder,
              steps.empty()    ? "start the run without --resume"
              : options.strict ? "set checkpoint.strict=false to fall back"
                               : "");
}

}  // namespace weft::ckpt
