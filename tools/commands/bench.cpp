// `weft bench`: how fast this machine computes what training is made of, beside PyTorch where asked; what
// heads that are off save; whether a mechanism's time a token grows with the text; what a GPU's kernels
// reach; how fast it decodes.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <map>

#include "tools/bench_cpu.h"
#include "tools/bench_decode.h"
#include "tools/bench_gpu.h"
#include "tools/bench_length.h"
#include "tools/commands.h"
#include "tools/commands/json_line.h"
#include "tools/describe_mechanism.h"
#include "tools/device_flag.h"
#include "tools/flags.h"
#include "training/log/environment_file.h"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "cpu";
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  char out[16];
  std::strftime(out, sizeof out, "%Y-%m-%d", std::localtime(&now));
  return out;
}

Json row_json(const BenchRow& r, const std::string& device) {
  const auto counted = [](double x) { return x > 0 ? Json(x) : Json(); };
  return {{"weft", "bench/1"},
          {"exit", 0},
          {"name", r.name},
          {"shape", r.shape},
          {"dtype", r.dtype},
          {"device", device},
          {"ms", r.ms},
          {"ms_p10", r.ms_p10},
          {"ms_p90", r.ms_p90},
          {"tflops", counted(r.tflops())},
          {"tbs", counted(r.tbs())},
          {"floor_ms", counted(r.floor_ms)},
          {"of_floor", counted(r.floor_ms / r.ms)},
          {"tokens_per_s", counted(r.tokens_per_s())},
          {"peer", nullptr},
          {"peer_ms", nullptr},
          {"ratio", nullptr},
          {"max_rel_err", nullptr},
          {"note", r.note.empty() ? Json() : Json(r.note)},
          {"commit", build_commit()},
          {"date", today()}};
}

std::string quoted(const std::string& word) {
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

// What the peer's script prints, a row a line: {"peer":"torch 2.11.0","name":…,"shape":…,"ms":…}.
std::vector<Json> run_peer(const std::string& python, const std::string& script, const Words& arguments) {
  std::string command = quoted(python) + " " + quoted(script);
  for (const std::string& a : arguments) command += " " + quoted(a);
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) throw Error(Exit::io, "cannot start " + python, "--peer");
  std::vector<Json> rows;
  char* line = nullptr;
  size_t capacity = 0;
  while (getline(&line, &capacity, pipe) > 0)
    if (const Json row = Json::parse(line, nullptr, false); row.is_object() && row.contains("ms"))
      rows.push_back(row);
  std::free(line);
  if (pclose(pipe) != 0 || rows.empty())
    throw Error(Exit::usage, python + " could not run " + script, "--peer",
                "give a python that has PyTorch 2");
  return rows;
}

void add_peer(std::vector<Json>& rows, const std::vector<Json>& peer) {
  for (Json& row : rows)
    for (const Json& other : peer)
      if (other["name"] == row["name"] && other["shape"] == row["shape"]) {
        row["peer"] = other["peer"];
        row["peer_ms"] = other["ms"];
        row["ratio"] = other["ms"].get<double>() / row["ms"].get<double>();
      }
}

std::string number(const Json& value, const char* format, double factor = 1) {
  if (value.is_null()) return "-";
  char out[32];
  std::snprintf(out, sizeof out, format, value.get<double>() * factor);
  return out;
}

void print_table(const std::vector<Json>& rows) {
  const auto line = [](const Words& cells) {
    char out[200];
    std::snprintf(out, sizeof out, "  %-26s  %-40s %9s %9s %10s %9s %6s\n", cells[0].c_str(),
                  cells[1].c_str(), cells[2].c_str(), cells[3].c_str(), cells[4].c_str(), cells[5].c_str(),
                  cells[6].c_str());
    print(out);
  };
  line({"NAME", "SHAPE", "MS", "GFLOP/S", "TOKENS/S", "PEER MS", "RATIO"});
  for (const Json& r : rows)
    line({r["name"], r["shape"], number(r["ms"], "%.3f"), number(r["tflops"], "%.1f", 1e3),
          number(r["tokens_per_s"], "%.0f"), number(r["peer_ms"], "%.3f"), number(r["ratio"], "%.2f")});
}

void print_gpu_line(const Words& cells) {
  char out[240];
  std::snprintf(out, sizeof out, "  %-32s  %-26s %9s %8s %6s %6s %9s %6s  %s\n", cells[0].c_str(),
                cells[1].c_str(), cells[2].c_str(), cells[3].c_str(), cells[4].c_str(), cells[5].c_str(),
                cells[6].c_str(), cells[7].c_str(), cells[8].c_str());
  print(out);
}
void print_gpu_table(const std::vector<Json>& rows) {
  print_gpu_line({"NAME", "SHAPE", "MS", "TFLOP/S", "TB/S", "FLOOR", "PEER MS", "RATIO", ""});
  for (const Json& r : rows)
    print_gpu_line({r["name"], r["shape"], number(r["ms"], "%.4f"), number(r["tflops"], "%.0f"),
                    number(r["tbs"], "%.2f"), number(r["of_floor"], "%.2f"), number(r["peer_ms"], "%.4f"),
                    number(r["ratio"], "%.2f"), r["note"].is_null() ? "" : r["note"]});
}

GpuRows gpu_rows(const std::string& name) {
  return flag_choice<GpuRows>("bench gpu", name,
                              {{"memory", GpuRows::memory},
                               {"products", GpuRows::products},
                               {"loss", GpuRows::loss},
                               {"attention", GpuRows::attention},
                               {"recurrence", GpuRows::recurrence},
                               {"small", GpuRows::small},
                               {"step", GpuRows::step},
                               {"floors", GpuRows::floors}});
}

// What a full look at the past costs grows with it, so those with a Merge are timed only if named.
Words linear_mechanisms() {
  Words ids;
  for (const MechanismEntry& entry : mechanisms()) {
    const Words kinds =
        learn(entry, {.dims = {.heads = 2, .kv_heads = 2, .key = 8, .value = 8, .width = 16}}).kinds();
    if (std::find(kinds.begin(), kinds.end(), "merge") == kinds.end()) ids.push_back(entry.id);
  }
  return ids;
}

// Each mechanism as it comes, a row a length or, for people, a line.
void print_lengths(Words ids, int64_t rounds, const std::string& device, bool json) {
  if (ids.empty()) {
    ids = linear_mechanisms();
    ids.insert(ids.end(), {"titans_mac", "chunk=16"});  // the shortest steps that wait for each other
  }
  Words specs;  // settings stand after the mechanism that they are of
  for (const std::string& word : ids)
    if (word.find('=') != std::string::npos && !specs.empty())
      specs.back() += " " + word;
    else
      specs.push_back(find_mechanism(word).id);
  if (!json) print("  ms for 32768 tokens, as documents of 1K 2K 4K 8K 16K 32K; rise of the fitted line\n");
  for (const std::string& spec : specs) {
    const std::vector<BenchRow> bench = bench_length(spec, rounds);
    std::string line = text("  ", bench[0].name, ": ");
    for (const BenchRow& row : bench) {
      Json out = row_json(row, device);
      out["rise"] = rise_of(bench);
      if (json) print_line(out);
      line += number(row.ms, "%.1f ");
    }
    if (!json) print(line + number(rise_of(bench), " %+.1f %%\n", 100));
    std::fflush(stdout);
  }
}

// Each row as it comes, with the share of the floor.
std::vector<Json> decode_rows(const Words& words, int64_t steps, bool json) {
  const bool gpu = default_device() == Device::cuda;
  const std::string device = gpu ? describe_device(Device::cuda) : processor();
  const std::vector<DecodeModel> models = decode_models(words, gpu);
  const double rate = measure_copy_rate();
  char line[160];
  if (!json) print(text("  a copy moves ", static_cast<int64_t>(rate * 1e-9), " GB/s\n"));
  std::vector<Json> rows;
  for (const DecodeModel& model : models)
    bench_decode(model, steps, rate, [&](const BenchRow& row) {
      rows.push_back(row_json(row, device));
      std::snprintf(line, sizeof line,
                    "  %-24s  %-12s %9.3f ms %10.0f tokens/s  floor %9.3f ms %4.0f %%  %s\n",
                    row.name.c_str(), row.shape.c_str(), row.ms, row.tokens_per_s(), row.floor_ms,
                    100 * row.floor_ms / row.ms, row.note.c_str());
      if (!json) print(line);
      std::fflush(stdout);
    });
  return rows;
}

}  // namespace

int run_bench(const Words& words) {
  bool json = false;
  int64_t milliseconds = 1000, rounds = 5, steps = 50;
  std::string peer, script, device_name;
  Flags flags(
      "bench", "WHAT [NAME...]",
      "WHAT is\n"
      "  cpu      matrix products, attention and whole training steps, in f32 on the CPU\n"
      "  heads    attention and layers of MoH with some heads of each token off, in f32 on the CPU\n"
      "  length   mechanisms, forward and backward, on one core: 32768 tokens as short and as long "
      "documents.\n"
      "           NAME: mechanisms (`titans_mac chunk=128 gla`); default: those whose cost should not grow\n"
      "  gpu      kernels, layers and steps in bf16 on a GPU. NAME: memory, products, loss, attention,\n"
      "           recurrence, small, step; default: all of these. FLOOR is the share of the rate that a "
      "copy\n"
      "           or a large product reached. floors: the least time of a step of 124m/softmax.yaml\n"
      "           and 1b/softmax.yaml\n"
      "  decode   a step of generation beside the time of reading its bytes, in bf16 on a GPU. NAME: sizes\n"
      "           tiny, 124M, 1.3B and layers softmax, lightning, hybrid; default: all");
  flags.add("--ms", milliseconds, "N",
            "measure each row for N milliseconds (`gpu` sets its own times); 0: once, without warming up, "
            "and `gpu` "
            "at sizes small enough for a CPU",
            {.min = 0});
  flags.add("--peer", peer, "PYTHON", "a Python with PyTorch, to measure the same shapes in afterwards");
  flags.add("--script", script, "FILE",
            "script that --peer runs; default tools/peers/torch_cpu.py, for `gpu` torch_gpu.py");
  flags.add("--rounds", rounds, "N", "for `length`: take the median of N rounds; default 5", {.min = 1});
  flags.add("--steps", steps, "N", "for `decode`: take the median of N steps; default 50", {.min = 1});
  flags.add("--device", device_name, "cpu|cuda", kDeviceHelp);
  flags.add("--json", json, "one line of JSON for each row, bench/1");
  if (!flags.parse(words)) return 0;
  const std::string what = flags.arguments()[0];
  const Words names(flags.arguments().begin() + 1, flags.arguments().end());
  const bool gpu = what == "gpu";
  if (!gpu && what != "cpu" && what != "heads" && what != "length" && what != "decode")
    throw Error(Exit::usage, "there is no bench '" + what + "'", "",
                "write cpu, heads, length, gpu or decode");
  if ((what == "cpu" || what == "heads") && !names.empty())
    throw Error(Exit::usage, "bench " + what + " has no parts to name", names[0], "leave the name out");
  if (what != "decode" && !device_name.empty()) refuse_flag("--device", device_name, "only decode takes it");
  if ((what == "length" || what == "decode") && !peer.empty())
    refuse_flag("--peer", peer, "cpu, heads and gpu take it");
  if (gpu) use_device(milliseconds > 0 ? Device::cuda : best_device());
  const std::string device =
      gpu && default_device() == Device::cuda ? describe_device(Device::cuda) : processor();
  if (script.empty()) script = gpu ? "tools/peers/torch_gpu.py" : "tools/peers/torch_cpu.py";
  std::vector<Json> rows;
  const double seconds = static_cast<double>(milliseconds) / 1000;
  const auto keep = [&](const BenchRow& row) {
    rows.push_back(row_json(row, device));
    if (gpu && json && peer.empty()) print_line(rows.back());  // as soon as it is there
  };
  if (what == "cpu") bench_cpu(seconds, keep);
  if (what == "heads") bench_heads(seconds, keep);
  if (what == "length") {
    print_lengths(names, rounds, device, json);
    return 0;
  }
  if (gpu) {
    GpuBench bench{.smaller = milliseconds > 0 ? 1 : 64};
    if (!names.empty()) bench.rows.clear();
    for (const std::string& name : names) bench.rows.push_back(gpu_rows(name));
    bench_gpu(bench, keep);
  }
  if (what == "decode") {
    compute_on(device_name);
    rows = decode_rows(names, steps, json);
  }
  if (!peer.empty()) add_peer(rows, run_peer(peer, script, gpu ? names : Words{text(seconds)}));
  if (!json && what != "decode") gpu ? print_gpu_table(rows) : print_table(rows);
  for (const Json& row : rows)
    if (json && !(gpu && peer.empty())) print_line(row);
  return 0;
}

}  // namespace weft
