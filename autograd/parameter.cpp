#include "autograd/parameter.h"

#include "autograd/draw.h"
#include "autograd/start_span.h"

namespace weft {
namespace {

// A gap of up to 60 bytes keeps every parameter on its own cache line.
int64_t aligned(int64_t numel) { return (numel + 15) / 16 * 16; }

void initialise(const ParameterEntry& entry, uint32_t seed) {
  const Initializer& init = entry.info.init;
  const RandomKey key{seed, stream_of(entry.info.name), 0};
  const Tensor& to = entry.master;
  switch (init.kind) {
    case Initializer::Kind::normal: return draw(to, Spread::normal, init.scale, key);
    case Initializer::Kind::uniform: return draw(to, Spread::uniform, init.scale, key);
    case Initializer::Kind::constant:  // rounded to f32 like all others, so that an f64 store starts the same
      return to.copy_from(full(to.shape(), static_cast<float>(init.scale), to.dtype(), to.device()));
    case Initializer::Kind::values: break;
  }
  CHECK(static_cast<int64_t>(init.values.size()) == to.numel(), entry.info.name, ": ", init.values.size(),
        " initial values for ", entry.info.shape);
  to.copy_from(from_values(to.shape(), Dtype::f32, init.values, Device::cpu).to(to.dtype()));
}

}  // namespace

Parameter ParameterStore::declare(ParameterInfo info) {
  CHECK(groups_.empty(), "parameter ", info.name, " declared after commit");
  CHECK(!find(info.name).defined(), "parameter ", info.name, " declared twice");
  entries_.push_back(std::make_unique<ParameterEntry>());
  entries_.back()->info = std::move(info);
  return Parameter(entries_.back().get());
}

void ParameterStore::commit() {
  CHECK(groups_.empty(), "parameters committed twice");
  const MemoryScope scope("parameters");
  const StartSpan span("weights");
  const Dtype wide = wide_of(precision_);
  for (const bool trainable : {true, false})
    for (const ParameterKind kind :
         {ParameterKind::matrix, ParameterKind::embedding, ParameterKind::vector}) {
      ParameterGroup group{kind, trainable, {}, {}, {}, {}};
      int64_t size = 0;
      for (auto& entry : entries_) {
        if (entry->info.kind != kind || entry->info.trainable != trainable) continue;
        entry->group = static_cast<int>(groups_.size());
        entry->offset = size;
        size += aligned(entry->info.shape.numel());
        group.entries.push_back(entry.get());
      }
      if (group.entries.empty()) continue;
      const Dtype working = kind == ParameterKind::vector ? wide : precision_;
      group.master = zeros({size}, wide, device_);
      group.working = working == wide ? group.master : zeros({size}, working, device_);
      if (trainable) {
        const MemoryScope gradients("gradients");
        group.gradient = zeros({size}, wide, device_);
      }
      for (ParameterEntry* e : group.entries) {
        const auto part = [&](const Tensor& flat) {
          return flat.rows(e->offset, e->offset + e->info.shape.numel()).reshape(e->info.shape);
        };
        e->master = part(group.master);
        e->working = part(group.working);
        if (trainable) e->gradient = part(group.gradient);
        if (device_ != Device::meta) initialise(*e, seed_);
      }
      groups_.push_back(std::move(group));
    }
  refresh_working();
}

void ParameterStore::begin_step() {
  for (auto& entry : entries_) entry->written = false;
}

std::vector<std::string> ParameterStore::finish_step() {
  std::vector<std::string> unwritten;
  for (auto& entry : entries_) {
    if (!entry->info.trainable || entry->written) continue;
    entry->gradient.zero();
    unwritten.push_back(entry->info.name);
  }
  return unwritten;
}

void ParameterStore::refresh_working() {
  for (ParameterGroup& group : groups_)
    if (group.working.buffer() != group.master.buffer()) group.working.copy_from(group.master);
}

Parameter ParameterStore::find(const std::string& name) const {
  for (const auto& entry : entries_)
    if (entry->info.name == name) return Parameter(entry.get());
  return Parameter();
}

int64_t ParameterStore::numel() const {
  int64_t n = 0;
  for (const auto& entry : entries_) n += entry->info.shape.numel();
  return n;
}

}  // namespace weft
