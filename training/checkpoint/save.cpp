#include "training/checkpoint/save.h"

#include <algorithm>
#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "autograd/fault.h"
#include "autograd/rank_error.h"
#include "training/checkpoint/checkpoint.h"
#include "training/checkpoint/files.h"
#include "training/checkpoint/folder.h"
#include "training/checkpoint/hash.h"
#include "training/checkpoint/shard.h"

namespace weft::ckpt {
namespace {

using fault::Phase;

constexpr int64_t shard_overhead = 1 << 16;   // HDF5's own structures
constexpr int64_t bytes_per_piece = 1 << 10;  // a dataset's header and attributes

// A flipped bit in what is on the disk, where the fault hook asks for it.
void damage(const std::string& path, std::initializer_list<Phase> phases) {
  if (std::none_of(phases.begin(), phases.end(),
                   [](Phase phase) { return fault::wants(fault::Kind::flip, phase); }))
    return;
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(-1, std::ios::end);
  const int last = file.get();
  file.seekp(-1, std::ios::end);
  file.put(static_cast<char>(last ^ 1));
}

// An error as a text that is not empty, for ranks that did not see it, and back.
std::string in_words(const std::exception& exception) {
  const auto* error = dynamic_cast<const Error*>(&exception);
  return nlohmann::json{static_cast<int>(error ? error->code : Exit::internal), exception.what(),
                        error ? error->where : "", error ? error->advice : ""}
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

RankError of_rank(size_t rank, const std::string& words) {
  const auto said = nlohmann::json::parse(words);
  return RankError(static_cast<int>(rank), Error(static_cast<Exit>(said[0].get<int>()),
                                                 text("on rank ", rank, ": ", said[1].get<std::string>()),
                                                 said[2].get<std::string>(), said[3].get<std::string>()));
}

class Save {
 public:
  Save(const SaveRequest& request, const Peers& peers)
      : request_(request),
        peers_(peers),
        manifest_(request.manifest),
        final_(step_folder(request.run_folder, manifest_.step)),
        temporary_(temporary_folder(request.run_folder, manifest_.step, manifest_.run)) {
    manifest_.world = peers.size;
    manifest_.files.clear();  // those of the checkpoint that the run came from
  }

  std::vector<std::string> run() {
    together([&] {
      if (first()) prepare();
    });
    together([&] { write_own_shard(); });
    together([&] { commit(); });
    std::vector<std::string> warnings;
    together([&] {
      if (!first()) return;
      // Once more, before anything is deleted.
      parse_manifest(read_text_file(final_ + "/MANIFEST", longest_manifest), final_);
      warnings = retain(request_.run_folder, manifest_.step, request_.keep, request_.damaged);
    });
    return warnings;
  }

 private:
  bool first() const { return peers_.rank == 0; }

  // Runs one stage on every rank; throws on every rank if it fails on any.
  template <class Stage>
  void together(Stage stage) {
    std::exception_ptr failure;
    std::string words;
    try {
      stage();
    } catch (const std::exception& exception) {
      failure = std::current_exception();
      words = in_words(exception);
    }
    if (peers_.agree(!failure)) return;
    if (first()) discard();
    const std::vector<std::string> all =
        peers_.tell(words);  // nobody tries again before the remains are gone
    if (failure) std::rethrow_exception(failure);
    const auto failed = std::find_if(all.begin(), all.end(), [](const auto& said) { return !said.empty(); });
    CHECK(failed != all.end(), "checkpoint of step ", manifest_.step, " not saved, and no rank says why");
    throw of_rank(static_cast<size_t>(failed - all.begin()), *failed);
  }

  void discard() noexcept {
    try {
      remove_tree(temporary_);
    } catch (const Error&) {
      // clean() takes it at the next start
    }
  }

  void prepare() {
    make_folder(request_.run_folder + "/checkpoints");
    remove_tree(temporary_);
    int64_t own = shard_overhead;
    for (const ArrayPiece& piece : request_.pieces) own += piece.bytes() + bytes_per_piece;
    // The other ranks hold about as much.
    const int64_t needed = own * peers_.size, free = free_bytes(request_.run_folder);
    if (free < needed)
      throw Error(Exit::io, text("a checkpoint needs about ", needed, " bytes, ", free, " are free"), final_,
                  "free space, or lower checkpoint.keep");
    make_folder(temporary_);
  }

  std::string digest_path(int64_t rank) const { return temporary_ + "/" + shard_name(rank) + ".digest"; }

  void write_own_shard() {
    const std::string path = temporary_ + "/" + shard_name(peers_.rank);
    write_shard(path, {manifest_.run, manifest_.step, peers_.rank, peers_.size}, request_.pieces,
                peers_.pulse);
    const std::string written = hash_file(path, peers_.pulse);
    damage(path, {Phase::save_data, Phase::save_mid, Phase::save_fsync});
    fault::point(Phase::save_fsync);
    const File file = File::open_read(path);
    file.sync();
    file.drop_cache();
    if (hash_file(path, peers_.pulse) != written)
      throw Error(Exit::io, "the disk holds other data than were written", path, "check the disk");
    write_file_atomically(digest_path(peers_.rank), text(file.size(), " ", written, "\n"));
  }

  void collect_digests() {
    for (int64_t rank = 0; rank < peers_.size; ++rank) {
      std::istringstream line(read_text_file(digest_path(rank), 256));
      FileDigest digest{shard_name(rank), 0, ""};
      line >> digest.bytes >> digest.xxh3;
      manifest_.files.push_back(digest);
      remove_tree(digest_path(rank));
    }
  }

  void commit() {
    // The other ranks pass the same fault points, so that a test can kill any of them here.
    if (first()) {
      collect_digests();
      Checkpoint(temporary_, manifest_);  // every array is there exactly once, or this would never load
    }
    fault::point(Phase::save_manifest);
    damage(temporary_ + "/" + shard_name(peers_.rank), {Phase::save_manifest, Phase::save_rename});
    if (first()) {
      write_file_atomically(temporary_ + "/MANIFEST", manifest_text(manifest_));
      sync_folder(temporary_);
    }
    fault::point(Phase::save_rename);
    if (first()) move_into_place();
    fault::point(Phase::save_latest);
    if (first()) damage(final_ + "/" + shard_name(0), {Phase::save_latest});
    if (first()) write_latest(request_.run_folder, manifest_.step);
  }

  void move_into_place() {
    const std::string parent = request_.run_folder + "/checkpoints";
    if (!exists(final_)) {
      rename_path(temporary_, final_);
    } else if (exchange_paths(temporary_, final_)) {  // a step saved again after a rewind
      sync_folder(parent);
      remove_tree(temporary_);
    } else {
      delete_step(request_.run_folder, manifest_.step);
      rename_path(temporary_, final_);
    }
    sync_folder(parent);
  }

  const SaveRequest& request_;
  const Peers& peers_;
  Manifest manifest_;
  const std::string final_, temporary_;
};

}  // namespace

std::vector<std::string> save(const SaveRequest& request, const Peers& peers) {
  return Save(request, peers).run();
}

}  // namespace weft::ckpt
