#include "tests/distributed/exercise.h"

#include <cmath>
#include <cstring>
#include <numeric>

#include "autograd/philox.h"

namespace weft {
namespace {

using Bytes = std::vector<std::byte>;

int64_t sum(const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

// Values over many magnitudes, so that another order of summation gives other bits.
Bytes random_values(int64_t count, Dtype dtype, int rank, uint32_t step) {
  const RandomKey key{7, stream_of("exercise"), step};
  Bytes bytes(static_cast<size_t>(count * size_of(dtype)));
  const auto fill = [&]<class T>() {
    for (int64_t i = 0; i < count; ++i) {
      const auto place = static_cast<uint64_t>(i * 64 + rank);
      const double value =
          key.normal(place) * std::exp2(static_cast<double>(key.draw(place, 3)[0] % 21) - 10);
      const T element = static_cast<T>(value * (std::is_same_v<T, int32_t> ? 1e4 : 1.0));
      std::memcpy(bytes.data() + i * static_cast<int64_t>(sizeof(T)), &element, sizeof(T));
    }
  };
  if (dtype == Dtype::i32)
    fill.template operator()<int32_t>();
  else
    with_float(dtype, fill);
  return bytes;
}

}  // namespace

std::vector<std::byte> exercise(Communicator& comm) {
  const int p = comm.size(), me = comm.rank();
  Bytes seen;
  uint32_t step = 0;
  const auto keep = [&](const Bytes& bytes) { seen.insert(seen.end(), bytes.begin(), bytes.end()); };

  for (Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::i32})
    for (int64_t n : {0, 1, 3, 1000, 5003}) {
      const auto size = [&](int64_t count) { return static_cast<size_t>(count * size_of(dtype)); };
      for (Reduce op : {Reduce::sum, Reduce::max}) {
        Bytes data = random_values(n, dtype, me, ++step);
        comm.all_reduce(data.data(), n, dtype, op);
        keep(data);
        const Bytes all = random_values(n * p, dtype, me, ++step);
        Bytes part(size(n));
        comm.reduce_scatter(all.data(), part.data(), n, dtype, op);
        keep(part);
      }
      std::vector<int64_t> counts(p);
      for (int r = 0; r < p; ++r) counts[r] = n * r % 401;  // rank 0 has nothing
      Bytes mine = random_values(counts[me], dtype, me, ++step), all(size(sum(counts)));
      comm.all_gather_v(mine.data(), all.data(), counts, dtype);
      keep(all);
      mine.assign(size(counts[me]), {});
      comm.reduce_scatter_v(all.data(), mine.data(), counts, dtype);
      keep(mine);

      std::vector<int64_t> sent(p), received(p);  // r sends (r + 1)(s + 2) n mod 301 elements to s
      for (int r = 0; r < p; ++r) {
        sent[r] = (me + 1) * (r + 2) * n % 301;
        received[r] = (r + 1) * (me + 2) * n % 301;
      }
      const Bytes out = random_values(sum(sent), dtype, me, ++step);
      Bytes in(size(sum(received)));
      comm.all_to_all_v(out.data(), sent, in.data(), received, dtype);
      keep(in);

      Bytes told = random_values(n, dtype, me, ++step);
      comm.broadcast(told.data(), n, dtype, p - 1);
      keep(told);

      Bytes ring = random_values(n, dtype, me, ++step), next(size(n));
      for (int hop = 0; hop < p; ++hop) {
        comm.send_recv(ring.data(), n, (me + 1) % p, next.data(), n, (me + p - 1) % p, dtype);
        ring.swap(next);
      }
      keep(ring);
    }
  comm.barrier();
  return seen;
}

}  // namespace weft
