#include "tools/describe_mechanism.h"

#include <algorithm>

#include "distributed/rank_crossing.h"
#include "distributed/segments.h"
#include "distributed/thread_comm.h"

namespace weft {
namespace {

// A mechanism with parameters and somewhere to run.
class Trial {
 public:
  Trial(const MechanismEntry& entry, const FieldValue& attributes, const Dimensions& dims, Dtype dtype,
        Device device)
      : store_(dtype, device),
        mechanism_(entry.make(attributes, dims, {store_, ""})),
        dtype_(dtype),
        device_(device) {
    store_.commit();
  }

  const Mechanism& mechanism() const { return *mechanism_; }
  Device device() const { return device_; }

  void forward(Crossing& cross) const {
    const Layout& layout = cross.layout();
    Block block{{}, layout.position, layout.document};
    for (const Input& input : mechanism_->inputs())
      block.x.push_back(full(input_shape(input, mechanism_->dims(), layout.tokens()), -0.1, dtype_, device_));
    mechanism_->forward(block, cross);
  }

 private:
  ParameterStore store_;
  std::unique_ptr<Mechanism> mechanism_;
  Dtype dtype_;
  Device device_;
};

template <class F>
bool works(F f) {
  try {
    f();
    return true;
  } catch (const Error&) {
    return false;
  }
}

// The attributes with one more, if the mechanism has such a one.
bool with_attribute(const MechanismEntry& entry, const std::string& name, const std::string& value,
                    FieldValue& attributes) {
  for (const FieldDescription& field : entry.describe({})) {
    if (field.name != name) continue;
    attributes.kind = FieldValue::Kind::map;
    std::erase_if(attributes.items, [&](const FieldValue& item) { return item.key == name; });
    FieldValue item = text_value(value);
    item.key = name;
    attributes.items.push_back(item);
    return true;
  }
  return false;
}

bool has_form(const MechanismEntry& entry, const MechanismSize& size, bool causal) {
  FieldValue attributes = size.attributes;
  const bool chooses = with_attribute(entry, "causal", causal ? "true" : "false", attributes);
  return works([&] {
    const Trial trial(entry, chooses ? attributes : size.attributes, size.dims, size.dtype, Device::meta);
    if (trial.mechanism().causal() != causal) throw Error(Exit::recipe, "the other form");
  });
}

std::vector<std::string> ways_over_ranks(const Trial& trial, SegmentPlan plan, bool merges) {
  // So many that heads can be shared out, if they can.
  const Dimensions& dims = trial.mechanism().dims();
  int ranks = 2;
  while (ranks < 8 && (dims.heads % ranks != 0 || dims.kv_heads % ranks != 0)) ++ranks;
  const std::vector<int64_t> lengths{std::max<int64_t>(64, 4 * trial.mechanism().align())};
  const std::vector<Segments> segments = plan_segments(plan, lengths, ranks, trial.mechanism().align());
  // Without keys to merge, ring and heads are other names for native.
  using enum CrossingStrategy;
  std::vector<std::pair<const char*, CrossingStrategy>> ways{{"native", native}, {"gather", gather}};
  if (merges) ways.insert(ways.end(), {{"ring", ring}, {"heads", heads}});
  std::vector<std::string> working;
  for (const auto& [name, strategy] : ways) {
    const bool works_so = works([&, way = strategy] {
      run_ranks(ranks, [&](Communicator& comm) {
        RankPlan of_rank(segments, comm.rank(), trial.device());
        const Layout layout = make_layout(of_rank.segments(), trial.device());
        RankCrossing cross(layout, of_rank, comm, way);
        trial.forward(cross);
      });
    });
    if (works_so) working.push_back(name);
  }
  return working;
}

}  // namespace

std::vector<std::string> MechanismFacts::kinds() const {
  std::vector<std::string> kinds;
  for (const PartCall& call : calls)
    if (std::find(kinds.begin(), kinds.end(), name_of(call.kind)) == kinds.end())
      kinds.push_back(name_of(call.kind));
  return kinds;
}

int64_t state_bytes(const MechanismEntry& entry, const MechanismSize& size) {
  const NoTape pause;
  const Trial trial(entry, size.attributes, size.dims, size.dtype, Device::meta);
  int64_t kept = -1;
  const bool streams = trial.mechanism().causal() && works([&] {
                         Stream stream;
                         const Layout whole = whole_documents({size.tokens}, Device::meta);
                         LocalCrossing prefill(whole, &stream);
                         trial.forward(prefill);
                         kept = stream.bytes();
                         const Layout next = make_layout({{0, size.tokens, size.tokens + 1}}, Device::meta);
                         LocalCrossing decode(next, &stream);
                         trial.forward(decode);
                       });
  return streams ? kept : -1;
}

MechanismFacts learn(const MechanismEntry& entry, const MechanismSize& size) {
  const NoTape pause;
  MechanismFacts facts;
  const Trial trial(entry, size.attributes, size.dims, size.dtype, Device::meta);
  const Layout whole = whole_documents({size.tokens}, Device::meta);
  LocalCrossing local(whole);
  RecordingCrossing recording(local);
  trial.forward(recording);
  facts.calls = recording.calls();

  facts.causal = has_form(entry, size, true);
  facts.bidirectional = has_form(entry, size, false);
  const int64_t kept = state_bytes(entry, size);
  facts.streaming = kept >= 0;
  facts.state_bytes = std::max<int64_t>(kept, 0);

  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    const bool accepted = works([&] {
      const Trial computed(entry, size.attributes, size.dims, dtype, Device::cpu);
      const Layout few = whole_documents({3});
      LocalCrossing cross(few);
      computed.forward(cross);
    });
    if (accepted) facts.dtypes.push_back(name_of(dtype));
  }

  const std::vector<std::string> kinds = facts.kinds();
  const bool merges = std::find(kinds.begin(), kinds.end(), "merge") != kinds.end();
  facts.contiguous = ways_over_ranks(trial, SegmentPlan::contiguous, merges);
  facts.zigzag = ways_over_ranks(trial, SegmentPlan::zigzag, merges);
  return facts;
}

}  // namespace weft
