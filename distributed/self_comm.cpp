#include "distributed/communicator.h"
#include "distributed/copy_bytes.h"

namespace weft {
namespace {

class SelfComm final : public Communicator {
 public:
  SelfComm() : Communicator(0, 1) {}
  const char* name() const override { return "self"; }
  void leave(Exit code, int culprit, const std::string& what) override { call_on_leave(code, culprit, what); }

 protected:
  void move_all_gather(const void* mine, void* all, std::span<const int64_t> bytes) override {
    copy_bytes(all, mine, bytes[0]);
  }
  void move_all_to_all(const void* out, std::span<const int64_t> sent, void* in,
                       std::span<const int64_t> received) override {
    CHECK(sent[0] == received[0], "all_to_all: sends ", sent[0], " bytes to itself, expects ", received[0]);
    copy_bytes(in, out, sent[0]);
  }
  void move_reduce_scatter(const void* all, void* mine, std::span<const int64_t> counts, Dtype dtype,
                           Reduce) override {
    copy_bytes(mine, all, counts[0] * size_of(dtype));
  }
  void move_broadcast(void*, int64_t, int) override {}
  void move_barrier() override {}
  void move_send(const void*, int64_t, int) override { CHECK(false, "send: there is no other rank"); }
  void move_recv(void*, int64_t, int) override { CHECK(false, "recv: there is no other rank"); }
  std::unique_ptr<Communicator> move_split(int color, int) override {
    return color < 0 ? nullptr : self_communicator();
  }
};

}  // namespace

std::unique_ptr<Communicator> self_communicator() { return std::make_unique<SelfComm>(); }

}  // namespace weft
