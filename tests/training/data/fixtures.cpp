#include "fixtures.h"

#include <hdf5.h>
#include <zlib.h>
#include <zstd.h>

namespace weft {

std::string llmc_file(const std::vector<uint32_t>& tokens, bool wide, int32_t version) {
  std::vector<int32_t> header(256, 0);
  header[0] = wide ? 20240801 : 20240520;
  header[1] = version >= 0 ? version : wide ? 7 : 1;
  header[2] = static_cast<int32_t>(tokens.size());
  const std::vector<uint16_t> narrow(tokens.begin(), tokens.end());
  return bytes_of(header) + (wide ? bytes_of(tokens) : bytes_of(narrow));
}

std::string megatron_index(const std::vector<int32_t>& lengths, int code) {
  const int64_t size = code == 8 ? 2 : 4;
  std::vector<int64_t> pointers, marks = {0};
  int64_t at = 0;
  for (const int32_t length : lengths) {
    pointers.push_back(at);
    at += length * size;
    marks.push_back(marks.back() + 1);
  }
  std::string out("MMIDIDX\0\0", 9);
  out += bytes_of(std::vector<uint64_t>{1});
  out += static_cast<char>(code);
  out += bytes_of(std::vector<uint64_t>{lengths.size(), marks.size()});
  return out + bytes_of(lengths) + bytes_of(pointers) + bytes_of(marks);
}

void write_hdf5(const std::string& path, const std::vector<int64_t>& tokens,
                const std::vector<int64_t>* offsets, int64_t chunk) {
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  const auto put = [&](const char* name, hid_t stored, const std::vector<int64_t>& values,
                       hsize_t chunk_size) {
    const hsize_t count = values.size();
    const hid_t space = H5Screate_simple(1, &count, nullptr), layout = H5Pcreate(H5P_DATASET_CREATE);
    if (chunk_size > 0) {
      H5Pset_chunk(layout, 1, &chunk_size);
      H5Pset_deflate(layout, 4);
      H5Pset_fletcher32(layout);
    }
    const hid_t set = H5Dcreate2(file, name, stored, space, H5P_DEFAULT, layout, H5P_DEFAULT);
    H5Dwrite(set, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data());
    H5Dclose(set);
    H5Pclose(layout);
    H5Sclose(space);
  };
  put("tokens", H5T_STD_U32LE, tokens, static_cast<hsize_t>(chunk));
  if (offsets) put("offsets", H5T_STD_I64LE, *offsets, 0);
  H5Fclose(file);
}

std::string gzipped(const std::string& text) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string zstandard(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

}  // namespace weft
