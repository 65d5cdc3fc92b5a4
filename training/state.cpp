#include "training/state.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "autograd/rank_error.h"
#include "distributed/agree.h"
#include "training/checkpoint/files.h"
#include "training/checkpoint/hash.h"
#include "training/data/order.h"
#include "training/mechanism_settings.h"
#include "training/recipe/load.h"

namespace weft {
namespace {

using nlohmann::json;

std::vector<int64_t> dims_of(const Shape& shape) { return {shape.begin(), shape.end()}; }

// Every array of the run: its name, its shape, and where its elements lie here.
struct StoredArray {
  std::string name;
  Shape shape;
  Tensor flat;
};

std::vector<StoredArray> arrays_of(Trainer& trainer) {
  std::vector<StoredArray> arrays;
  for (const auto& e : trainer.store().entries())
    arrays.push_back({"master." + e->info.name, e->info.shape, e->master.reshape({e->master.numel()})});
  for (const StateTensor& state : trainer.optimizer().state())
    for (const ParameterPiece& p : pieces(trainer.store(), state.range)) {
      CHECK(p.begin == 0 && p.count == p.entry->info.shape.numel(), state.name,
            ": a parameter cut between ranks");
      arrays.push_back({state.name + "." + p.entry->info.name, p.entry->info.shape,
                        state.values.rows(p.offset, p.offset + p.count)});
    }
  return arrays;
}

void read_elements(const Tensor& to, const ckpt::Checkpoint& checkpoint, const std::string& name) {
  const Tensor host = to.device() == Device::cpu ? to : empty(to.shape(), to.dtype(), Device::cpu);
  checkpoint.read(name, 0, host.numel(), host.raw());
  if (to.device() != Device::cpu) to.copy_from(host);
}

void read_into(const Tensor& flat, const Shape& shape, const ckpt::Checkpoint& checkpoint,
               const std::string& name) {
  if (!checkpoint.contains(name))
    throw Error(Exit::no_checkpoint, text(name, " is not in the checkpoint"), checkpoint.folder(),
                "resume with the recipe it was saved with");
  const ckpt::Checkpoint::Array& array = checkpoint.at(name);
  if (array.shape != dims_of(shape) || array.dtype != flat.dtype())
    throw Error(Exit::no_checkpoint,
                text(name, " is ", Shape(array.shape.begin(), array.shape.end()), " ", name_of(array.dtype),
                     ", the model needs ", shape, " ", name_of(flat.dtype())),
                checkpoint.folder(), "resume with the recipe it was saved with");
  read_elements(flat, checkpoint, name);
}

}  // namespace

std::string weights_hash_of(const ParameterStore& store) {
  std::vector<NamedArray> masters;
  std::vector<Tensor> narrow;  // in f32 and host memory
  for (const auto& e : store.entries()) {
    narrow.push_back(e->master.to(Dtype::f32).to(Device::cpu));
    masters.push_back({e->info.name, Dtype::f32, dims_of(e->info.shape), narrow.back().raw()});
  }
  return weights_hash(std::move(masters));
}

ckpt::Peers peers_of(Communicator* world) {
  if (world == nullptr) return {};
  return {world->rank(), world->size(), [world](bool ok) { return all_ranks(world, ok); },
          [world](const std::string& mine) { return gather_texts(world, mine); },
          [world] { world->pulse(); }};
}

namespace {

// Every rank makes the same updates, so their weights have the same bits; each saves a share of its own. What
// made them differ would be saved, and with the next checkpoint there would be no good one.
void require_same_weights(Communicator* world, const std::string& hash, int64_t step) {
  const std::vector<std::string> all = gather_texts(world, hash);
  // What most ranks hold is taken to be right; a tie goes to the lower rank.
  const auto votes = [&](const std::string& h) { return std::count(all.begin(), all.end(), h); };
  const auto right =
      std::max_element(all.begin(), all.end(),
                       [&](const std::string& a, const std::string& b) { return votes(a) < votes(b); });
  const auto odd = std::find_if(all.begin(), all.end(), [&](const std::string& h) { return h != *right; });
  if (odd == all.end()) return;
  const auto rank = static_cast<int>(odd - all.begin());
  throw RankError(rank,
                  Error(Exit::internal,
                        text("after step ", step, " rank ", rank, " holds other weights than rank ",
                             right - all.begin(), ": a bit has flipped or an update was lost"),
                        "ranks", "continue with --resume; if it comes again, look at that rank's machine"));
}

}  // namespace

std::vector<std::string> save_run(Trainer& trainer, const RunState& state, const std::string& run_id,
                                  const std::vector<int64_t>& damaged) {
  const ckpt::Peers peers = peers_of(trainer.world());
  ckpt::SaveRequest request;
  request.run_folder = trainer.recipe().run;
  const int64_t keep = trainer.recipe().checkpoint.keep;
  request.keep = keep == 0 ? std::numeric_limits<int64_t>::max() : keep;
  request.damaged = damaged;
  ckpt::Manifest& m = request.manifest;
  m.run = run_id;
  m.step = state.step;
  const std::string recipe = resolved_recipe(trainer.recipe());
  m.recipe_hash = hash128(recipe.data(), recipe.size());
  m.tokenizer_hash = trainer.tokenizer().hash();
  m.order_hash = state.order_hash;
  m.weights_hash = weights_hash_of(trainer.store());
  require_same_weights(trainer.world(), m.weights_hash, state.step);
  m.extra = json{
      {"tokens", state.tokens},
      {"skipped_steps", state.skipped_steps},
      {"updates", trainer.updates()},
      {"data", state.data},
      {"starts", state.starts},
      {"seed", trainer.recipe().seed},
      {"guard", trainer.guard().state()},
      {"mechanisms", mechanism_settings(trainer.recipe())},
      {"recipe",
       recipe}}.dump();
  // Every rank holds every array: each writes its share of the elements.
  std::vector<Tensor> shares;  // in host memory
  for (const StoredArray& a : arrays_of(trainer)) {
    const Slice own = slice_of(a.flat.numel(), static_cast<int>(peers.rank), static_cast<int>(peers.size));
    if (own.begin >= own.end) continue;
    shares.push_back(a.flat.rows(own.begin, own.end).to(Device::cpu));
    request.pieces.push_back(
        {a.name, a.flat.dtype(), dims_of(a.shape), own.begin, own.end - own.begin, shares.back().raw()});
  }
  return ckpt::save(request, peers);
}

namespace {
std::string rewind_file(const std::string& run) { return run + "/rewind.json"; }
}  // namespace

void write_rewind(const std::string& run, const Rewind& rewind) {
  write_file_atomically(rewind_file(run),
                        json{{"rewinds", rewind.rewinds}, {"data", rewind.data}}.dump() + "\n");
}

std::optional<Rewind> read_rewind(const std::string& run) {
  const std::string path = rewind_file(run);
  if (!std::filesystem::exists(path)) return {};
  try {
    const json file = json::parse(std::ifstream(path));
    return Rewind{file.at("rewinds"), file.at("data")};
  } catch (const json::exception& e) {
    throw Error(Exit::no_checkpoint, text("cannot be read: ", e.what()), path,
                "remove it: the run then continues from its checkpoint, with the data that it skipped");
  }
}

void forget_rewind(const std::string& run) {
  std::error_code absent;
  std::filesystem::remove(rewind_file(run), absent);
}

void require_saved_settings(const ckpt::Checkpoint& checkpoint, const Recipe& recipe) {
  const json extra = json::parse(checkpoint.manifest().extra, nullptr, false);
  if (!extra.is_object() || !extra.contains("mechanisms")) return;  // saved before they were kept
  try {
    require_settings(extra.at("mechanisms").get<MechanismSettings>(), recipe);
  } catch (const json::exception& e) {
    throw Error(Exit::no_checkpoint, text("the manifest's mechanisms cannot be read: ", e.what()),
                checkpoint.folder());
  }
}

std::vector<RecipeDifference> changes_since(const ckpt::Checkpoint& checkpoint, const Recipe& recipe) {
  const json extra = json::parse(checkpoint.manifest().extra, nullptr, false);
  if (!extra.is_object() || !extra.contains("recipe") || !extra["recipe"].is_string())
    return {};  // saved before
  try {
    return recipe_diff(parse_recipe(extra["recipe"], checkpoint.folder()), recipe);
  } catch (const Error&) {  // of a version with other keys, of which this one cannot tell
    return {};
  }
}

void require_saved_recipe(const ckpt::Checkpoint& checkpoint, const Recipe& recipe,
                          const std::string& section) {
  const std::set<std::string> told_otherwise{"init", "data.train", "data.val", "data.tokenizer",
                                             "model.mechanisms"};
  for (const RecipeDifference& d : changes_since(checkpoint, recipe))
    if (d.fixed && d.key.starts_with(section) && !told_otherwise.contains(d.key))
      throw Error(Exit::recipe, "the checkpoint was saved with another recipe: " + d.line(),
                  recipe.where(d.key),
                  "set it back in recipe.yaml of the run, or start a new run from it with init");
}

RunState restore_run(Trainer& trainer, const ckpt::Checkpoint& checkpoint) {
  const ckpt::Manifest& m = checkpoint.manifest();
  if (m.tokenizer_hash != trainer.tokenizer().hash())
    throw Error(Exit::recipe, "the tokenizer is not that of the checkpoint",
                trainer.recipe().where("data.tokenizer"), "use the tokenizer the run was started with");
  // Recipe and tokenizer may be the same, and yet it is another run's.
  const json extra = json::parse(m.extra, nullptr, false);
  if (const int64_t seed = trainer.recipe().seed; extra.is_object() && extra.value("seed", seed) != seed)
    throw Error(Exit::data, text("is of a run with seed ", extra["seed"].dump(), ", this one has ", seed),
                checkpoint.folder(), "remove it: the run then continues from its own");
  require_saved_recipe(checkpoint, trainer.recipe(), "");
  require_saved_settings(checkpoint, trainer.recipe());
  for (const StoredArray& a : arrays_of(trainer)) read_into(a.flat, a.shape, checkpoint, a.name);
  trainer.store().refresh_working();
  try {
    trainer.set_updates(extra.at("updates"));
    trainer.guard().restore(extra.at("guard").get<std::vector<double>>());
    RunState state{m.step, extra.at("tokens"), extra.at("skipped_steps"), m.order_hash,
                   extra.value("data", "")};
    const std::optional<Rewind> rewind = read_rewind(trainer.recipe().run);
    const double known = extra.at("guard").at(0);  // rewinds when it was saved
    if (rewind && known < static_cast<double>(rewind->rewinds)) {
      trainer.guard().remember_rewinds(rewind->rewinds);
      state.skipped_steps = std::max(state.skipped_steps, rewind->data - state.step);
    }
    return state;
  } catch (const json::exception& e) {
    throw Error(Exit::no_checkpoint, text("the manifest's state of the run cannot be read: ", e.what()),
                checkpoint.folder());
  }
}

std::vector<std::string> start_from(ParameterStore& store, const ckpt::Checkpoint& checkpoint) {
  const std::string part = "mechanism.";
  std::vector<std::string> absent;
  for (const auto& e : store.entries()) {
    std::string name = "master." + e->info.name;
    if (const size_t at = name.find(part); !checkpoint.contains(name) && at != std::string::npos)
      name.erase(at, part.size());
    if (!checkpoint.contains(name)) {
      absent.push_back(e->info.name);
      continue;
    }
    const ckpt::Checkpoint::Array& array = checkpoint.at(name);
    if (array.shape != dims_of(e->info.shape) || array.dtype != e->master.dtype())
      throw Error(Exit::recipe,
                  text(name, " is ", Shape(array.shape.begin(), array.shape.end()), " ", name_of(array.dtype),
                       " there, the model needs ", e->info.shape, " ", name_of(e->master.dtype())),
                  "init", "start from a run with the same sizes");
    read_elements(e->master, checkpoint, name);
  }
  if (absent.size() == store.entries().size())
    throw Error(Exit::recipe, "no parameter of " + checkpoint.folder() + " has a name of this model", "init");
  store.refresh_working();
  return absent;
}

std::vector<int32_t> saved_starts(const ckpt::Checkpoint& checkpoint) {
  const json extra = json::parse(checkpoint.manifest().extra, nullptr, false);
  if (!extra.is_object() || !extra.contains("starts")) return {};
  try {
    return extra["starts"].get<std::vector<int32_t>>();
  } catch (const json::exception&) {
    return {};
  }
}

void restore_weights(ParameterStore& store, const ckpt::Checkpoint& checkpoint) {
  for (const auto& e : store.entries()) {
    const std::string mean = "ema." + e->info.name;
    const std::string name = checkpoint.contains(mean) ? mean : "master." + e->info.name;
    const Tensor flat = e->master.reshape({e->master.numel()});
    if (checkpoint.contains(name) && checkpoint.at(name).dtype == flat.dtype()) {
      read_into(flat, e->info.shape, checkpoint, name);
    } else {  // another precision than it was trained in
      const Tensor stored(flat.shape(), flat.dtype() == Dtype::f64 ? Dtype::f32 : Dtype::f64, Device::cpu);
      read_into(stored, e->info.shape, checkpoint, name);
      flat.copy_from(stored);
    }
  }
  store.refresh_working();
}

}  // namespace weft
