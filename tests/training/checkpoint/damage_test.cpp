// What a disk, a person or another run can do to a checkpoint, and what the loader makes of it.
#include <hdf5.h>
#include <random>

#include "tests/training/checkpoint/saving.h"
#include "training/checkpoint/shard.h"

namespace weft::ckpt {
namespace {

const LoadOptions strict{.strict = true};

class DamageTest : public testing::Test {
 protected:
  void SetUp() override {
    save_step(run_.path(), 1, 2);
    save_step(run_.path(), 2, 2);
  }

  std::string in_step(int64_t step, const std::string& name) const {
    return step_folder(run_.path(), step) + "/" + name;
  }

  // Step 2 is passed over, with these words among the warnings; strictly there is nothing to load.
  void expect_fallback(const std::vector<std::string>& words) {
    const Loaded loaded = load(run_.path());
    ASSERT_EQ(loaded.checkpoint.manifest().step, 1);
    State(1).expect_equal(loaded.checkpoint);
    std::string warnings;
    for (const std::string& warning : loaded.warnings) warnings += warning + "\n";
    EXPECT_NE(warnings.find("step 2"), std::string::npos) << warnings;
    for (const std::string& word : words)
      EXPECT_NE(warnings.find(word), std::string::npos) << word << " not in " << warnings;
    expect_error(Exit::no_checkpoint, words, [&] { load(run_.path(), strict); });
  }

  TemporaryFolder run_;
};

TEST_F(DamageTest, TruncationAnywhereAndTrailingBytes) {
  for (const char* name : {"rank-0000.h5", "rank-0001.h5"}) {
    const std::string path = in_step(2, name), good = read_bytes(path);
    for (const size_t size :
         {size_t{0}, size_t{1}, size_t{8}, size_t{96}, good.size() / 2, good.size() - 1}) {
      write_bytes(path, good.substr(0, size));
      expect_fallback({name, text("has ", size, " bytes")});
    }
    write_bytes(path, good + "x");
    expect_fallback({name, text("has ", good.size() + 1, " bytes")});
    write_bytes(path, good);
  }
  EXPECT_EQ(load(run_.path(), strict).checkpoint.manifest().step, 2);
}

TEST_F(DamageTest, EveryOneOf200RandomBitFlipsIsSeen) {
  std::mt19937_64 random(7);
  const std::string names[] = {"rank-0000.h5", "rank-0001.h5"};
  const std::string good[] = {read_bytes(in_step(2, names[0])), read_bytes(in_step(2, names[1]))};
  for (int i = 0; i < 200; ++i) {
    const size_t which = i % 2;
    std::string bad = good[which];
    bad[random() % bad.size()] ^= static_cast<char>(1 << random() % 8);
    write_bytes(in_step(2, names[which]), bad);
    const Loaded loaded = load(run_.path());
    ASSERT_EQ(loaded.checkpoint.manifest().step, 1) << "flip " << i;
    ASSERT_NE(loaded.warnings.at(0).find(names[which]), std::string::npos);
    write_bytes(in_step(2, names[which]), good[which]);
  }
}

TEST_F(DamageTest, EveryBitOfTheManifestCounts) {
  const std::string good = read_bytes(in_step(2, "MANIFEST"));
  EXPECT_NO_THROW(parse_manifest(good, "m"));
  for (size_t at = 0; at < good.size(); ++at)
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[at] ^= static_cast<char>(1 << bit);
      EXPECT_THROW(parse_manifest(bad, "m"), Error) << at << " " << bit;
    }
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_THROW(parse_manifest(good.substr(0, size), "m"), Error) << size;
  EXPECT_THROW(parse_manifest(good + "\n", "m"), Error);
}

TEST_F(DamageTest, ManifestMissingEmptyOrOfAnotherStep) {
  const std::string path = in_step(2, "MANIFEST"), good = read_bytes(path);
  std::filesystem::remove(path);
  expect_fallback({"MANIFEST", "missing"});
  write_bytes(path, "");
  expect_fallback({"MANIFEST", "no hash line"});
  write_bytes(path, read_bytes(in_step(1, "MANIFEST")));
  expect_fallback({"MANIFEST", "is of step 1"});
  std::filesystem::remove(path);
  std::filesystem::create_directory(path);
  expect_fallback({"MANIFEST"});
}

TEST_F(DamageTest, LatestMissingGarbageOrPointingNowhere) {
  const std::string path = run_ / "latest";
  std::filesystem::create_directory(step_folder(run_.path(), 3) + ".tmp-x");
  for (const char* content : {"", "\n", "garbage", "checkpoints/step-2", "checkpoints/step-3.tmp-x\n",
                              "checkpoints/step-\n", "checkpoints/step-02\n", "checkpoints/step--2\n",
                              "checkpoints/../step-2\n", "checkpoints/step-99999999999999999999\n"}) {
    write_bytes(path, content);
    const Loaded loaded = load(run_.path());
    EXPECT_EQ(loaded.checkpoint.manifest().step, 2) << content;
    EXPECT_EQ(loaded.warnings.size(), 1u);
    expect_error(Exit::no_checkpoint, {"latest"}, [&] { load(run_.path(), strict); });
  }
  write_bytes(path, std::string(5000, 'x'));
  EXPECT_EQ(load(run_.path()).checkpoint.manifest().step, 2);
  std::filesystem::remove(path);
  EXPECT_EQ(load(run_.path()).checkpoint.manifest().step, 2);
  std::filesystem::create_directory(path);
  EXPECT_EQ(load(run_.path()).checkpoint.manifest().step, 2);
  std::filesystem::remove(path);

  write_bytes(path, "checkpoints/step-7\n");  // not there
  EXPECT_EQ(load(run_.path()).checkpoint.manifest().step, 2);
  expect_error(Exit::no_checkpoint, {"step 7"}, [&] { load(run_.path(), strict); });
}

TEST_F(DamageTest, ShardsMissingSwappedOrOfAnotherRun) {
  const std::string first = in_step(2, "rank-0000.h5"), second = in_step(2, "rank-0001.h5");
  const std::string bytes_first = read_bytes(first), bytes_second = read_bytes(second);
  std::filesystem::remove(second);
  expect_fallback({"rank-0001.h5", "is missing"});
  write_bytes(second, bytes_first);
  expect_fallback({"rank-0001.h5"});
  write_bytes(first, bytes_second);
  expect_fallback({"rank-0000.h5"});
  write_bytes(first, bytes_first);
  write_bytes(second, read_bytes(in_step(1, "rank-0001.h5")));
  expect_fallback({"rank-0001.h5", "of another run"});

  // Whole and consistent, but of another run.
  TemporaryFolder other;
  SaveRequest request = request_for(other.path(), 2);
  request.manifest.run = "another";
  const State state(2);
  request.pieces = state.pieces(0, 1);
  save(request);
  std::filesystem::remove_all(step_folder(run_.path(), 2));
  std::filesystem::copy(step_folder(other.path(), 2), step_folder(run_.path(), 2));
  EXPECT_EQ(load(run_.path()).checkpoint.manifest().run, "another");
  LoadOptions options;
  options.run = test_run;
  const Loaded loaded = load(run_.path(), options);
  EXPECT_EQ(loaded.checkpoint.manifest().step, 1);
  EXPECT_NE(loaded.warnings.at(0).find("belongs to run another"), std::string::npos);

  // A manifest that vouches for a foreign shard: the shard itself knows better.
  Manifest forged = parse_manifest(read_bytes(in_step(2, "MANIFEST")), "");
  forged.run = test_run;
  write_bytes(in_step(2, "MANIFEST"), manifest_text(forged));
  EXPECT_NE(load(run_.path()).warnings.at(0).find("belongs to run another"), std::string::npos);
}

TEST_F(DamageTest, SwappedShardsOfOneSizeAreNamed) {
  const std::vector<float> values = {1, 2, 3, 4};
  on_ranks(2, [&](const Peers& peers) {
    SaveRequest request = request_for(run_.path(), 2);
    request.pieces = {ArrayPiece("w", Dtype::f32, {4}, 2 * peers.rank, 2, values.data() + 2 * peers.rank)};
    save(request, peers);
  });
  const std::string first = in_step(2, "rank-0000.h5"), second = in_step(2, "rank-0001.h5");
  const std::string bytes_first = read_bytes(first), bytes_second = read_bytes(second);
  ASSERT_EQ(bytes_first.size(), bytes_second.size());
  write_bytes(first, bytes_second);
  write_bytes(second, bytes_first);
  expect_fallback({"rank-0000.h5", "holds the shard rank-0001.h5"});
}

TEST_F(DamageTest, OtherFormatVersionsAreRefusedAtOnce) {
  const std::string path = in_step(2, "MANIFEST"), good = read_bytes(path);
  const std::string body = good.substr(0, good.rfind("\nxxh3-128 "));
  const std::string key = "\"format\": 1";
  for (const bool newer : {false, true}) {
    const std::string version = newer ? "\"format\": 2" : "\"format\": 0", word = newer ? "newer" : "older";
    std::string other = body;
    other.replace(other.find(key), key.size(), version);
    write_bytes(path, other + "\nxxh3-128 " + hash128(other.data(), other.size()) + "\n");
    expect_error(Exit::no_checkpoint, {"format", word, "MANIFEST"}, [&] { load(run_.path()); });
    on_ranks(3, [&](const Peers& peers) {
      expect_error(Exit::no_checkpoint, {word}, [&] { load(run_.path(), {}, peers); });
    });
  }
}

TEST_F(DamageTest, NoneGood) {
  for (const int64_t step : {1, 2}) write_bytes(in_step(step, "rank-0000.h5"), "");
  expect_error(Exit::no_checkpoint, {"step 1", "step 2"}, [&] { load(run_.path()); });
  on_ranks(3, [&](const Peers& peers) {
    expect_error(Exit::no_checkpoint, {"no usable checkpoint"}, [&] { load(run_.path(), {}, peers); });
  });
  TemporaryFolder empty;
  expect_error(Exit::no_checkpoint, {empty.path()}, [&] { load(empty.path()); });
  expect_error(Exit::no_checkpoint, {"step 9"}, [&] {
    LoadOptions nine;
    nine.step = 9;
    load(run_.path(), nine);
  });
}

TEST_F(DamageTest, RanksThatSeeDifferentDamageFallBackTogether) {
  write_bytes(in_step(2, "rank-0001.h5"), "");  // verified by rank 1 alone
  on_ranks(2, [&](const Peers& peers) {
    const Loaded loaded = load(run_.path(), {}, peers);
    EXPECT_EQ(loaded.checkpoint.manifest().step, 1);
    ASSERT_EQ(loaded.warnings.size(), 1u);
    for (const char* word : {"rank-0001.h5", peers.rank == 0 ? "refused on rank 1: " : "refused: "})
      EXPECT_NE(loaded.warnings[0].find(word), std::string::npos) << loaded.warnings[0];
  });
}

// A shard whose hash is right and whose content is not what it says.
class ShardTest : public testing::Test {
 protected:
  // Writes a valid shard with the array "w" (2, 3) f32, then lets `change` rework it.
  template <class F>
  void refused(const std::vector<std::string>& words, F change) {
    std::filesystem::remove(path_);
    const std::vector<float> values(6, 1.0f);
    write_shard(path_, identity_, {NamedArray{"w", Dtype::f32, {2, 3}, values.data()}});
    ASSERT_EQ(read_shard_index(path_, identity_).size(), 1u);
    const hid_t file = H5Fopen(path_.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
    change(file);
    H5Fclose(file);
    std::vector<std::string> all = words;
    all.push_back(path_);
    expect_error(Exit::data, all, [&] { read_shard_index(path_, identity_); });
  }

  static void put_string(hid_t owner, const char* name, const std::string& value) {
    const hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    H5Tset_size(type, value.size() + 1);
    if (H5Aexists(owner, name) > 0) H5Adelete(owner, name);
    const hid_t attribute = H5Acreate2(owner, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(attribute, type, value.c_str());
    H5Aclose(attribute);
    H5Sclose(space);
    H5Tclose(type);
  }

  static void put_integers(hid_t owner, const char* name, const std::vector<int64_t>& values) {
    const hsize_t size = values.size();
    const hid_t space = H5Screate_simple(1, &size, nullptr);
    if (H5Aexists(owner, name) > 0) H5Adelete(owner, name);
    const hid_t attribute = H5Acreate2(owner, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(attribute, H5T_NATIVE_INT64, values.data());
    H5Aclose(attribute);
    H5Sclose(space);
  }

  // Makes a dataset of six elements; `label` is its dtype attribute ("" = none).
  static hid_t put_dataset(hid_t file, const char* name, hid_t type, std::vector<hsize_t> dims,
                           const std::string& label, bool chunked = false) {
    const hid_t space = H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr);
    const hid_t layout = H5Pcreate(H5P_DATASET_CREATE);
    if (chunked) H5Pset_chunk(layout, static_cast<int>(dims.size()), dims.data());
    const hid_t dataset = H5Dcreate2(file, name, type, space, H5P_DEFAULT, layout, H5P_DEFAULT);
    const std::vector<double> values(64, 1.0);
    H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data());
    if (!label.empty()) put_string(dataset, "dtype", label);
    H5Pclose(layout);
    H5Sclose(space);
    return dataset;
  }

  TemporaryFolder folder_;
  const std::string path_ = folder_ / "rank-0000.h5";
  const ShardIdentity identity_{test_run, 5, 0, 1};
};

TEST_F(ShardTest, IdentityIsChecked) {
  refused({"belongs to run x"}, [](hid_t file) { put_string(file, "run", "x"); });
  refused({"step 6, not 5"}, [](hid_t file) { put_integers(file, "step", {6}); });
  refused({"rank 3, not 0"}, [](hid_t file) { put_integers(file, "rank", {3}); });
  refused({"world 2, not 1"}, [](hid_t file) { put_integers(file, "world", {2}); });
  refused({"shard format 2"}, [](hid_t file) { put_integers(file, "format", {2}); });
  refused({"attribute run"}, [](hid_t file) { H5Adelete(file, "run"); });
  refused({"step has the wrong type"}, [](hid_t file) { put_string(file, "step", "5"); });
}

TEST_F(ShardTest, TypesShapesAndExtentsAreChecked) {
  const auto with = [](const char* name, hid_t type, const std::vector<hsize_t>& dims,
                       const std::string& label, bool chunked = false) {
    return [=](hid_t file) { H5Dclose(put_dataset(file, name, type, dims, label, chunked)); };
  };
  refused({"x: is not stored as f32"}, with("x", H5T_IEEE_F64LE, {6}, "f32"));
  refused({"x: is not stored as f32"}, with("x", H5T_STD_I32LE, {6}, "f32"));
  refused({"x: is not stored as f32"}, with("x", H5T_IEEE_F32BE, {6}, "f32"));
  refused({"x: unknown dtype f16"}, with("x", H5T_IEEE_F32LE, {6}, "f16"));
  refused({"attribute dtype"}, with("x", H5T_IEEE_F32LE, {6}, ""));
  refused({"x: is not stored in one run"}, with("x", H5T_IEEE_F32LE, {6}, "f32", true));
  refused({"attribute begin"}, with("x[0:6]", H5T_IEEE_F32LE, {6}, "f32"));
  refused({"x[0:6]: a part has to be flat"}, with("x[0:6]", H5T_IEEE_F32LE, {2, 3}, "f32"));
  const auto part = [](int64_t begin, const std::vector<int64_t>& shape) {
    return [=](hid_t file) {
      const hid_t dataset = put_dataset(file, "x[0:6]", H5T_IEEE_F32LE, {6}, "f32");
      put_integers(dataset, "begin", {begin});
      put_integers(dataset, "shape", shape);
      H5Dclose(dataset);
    };
  };
  refused({"outside its 8 elements"}, part(3, {8}));
  refused({"outside its 8 elements"}, part(-1, {8}));
  refused({"impossible shape"}, part(0, {-8}));
  refused({"impossible shape"}, part(0, {int64_t{1} << 40, int64_t{1} << 40}));
  refused({"cannot read group"},
          [](hid_t file) { H5Gclose(H5Gcreate2(file, "group", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)); });
}

TEST_F(ShardTest, NoHdf5FileAtAll) {
  write_bytes(path_, std::string(4096, 'x'));
  expect_error(Exit::data, {path_, "HDF5"}, [&] { read_shard_index(path_, identity_); });
  write_bytes(path_, "");
  expect_error(Exit::data, {path_}, [&] { read_shard_index(path_, identity_); });
  expect_error(Exit::data, {"none"}, [&] { read_shard_index(folder_ / "none", identity_); });
}

TEST_F(ShardTest, NamesThatHdf5WouldMisread) {
  const float one = 1;
  for (const char* name : {"", ".", "a/b", "a[0:1]"}) {
    std::filesystem::remove(path_);
    EXPECT_THROW(write_shard(path_, identity_, {NamedArray{name, Dtype::f32, {1}, &one}}), Error) << name;
  }
}

TEST_F(ShardTest, TheSameContentMakesTheSameBytes) {
  const std::vector<float> values(6, 1.0f);
  const std::vector<ArrayPiece> pieces = {NamedArray{"w", Dtype::f32, {2, 3}, values.data()}};
  write_shard(path_, identity_, pieces);
  write_shard(folder_ / "again.h5", identity_, pieces);
  EXPECT_EQ(read_bytes(path_), read_bytes(folder_ / "again.h5"));
}

}  // namespace
}  // namespace weft::ckpt
