#pragma once
// The names inside a run folder, and which of them count:
//   checkpoints/step-N/           complete: named so by one rename, once all of it was on the disk
//   checkpoints/step-N.tmp-RUN/   being written, or left by a writer that died
//   checkpoints/step-N.trash-ID/  being deleted
//   latest                        one line "checkpoints/step-N"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace weft::ckpt {

std::string step_folder(const std::string& run_folder, int64_t step);
std::string temporary_folder(const std::string& run_folder, int64_t step, const std::string& run);
std::string shard_name(int64_t rank);  // rank-0003.h5

// Complete steps, ascending.
std::vector<int64_t> list_steps(const std::string& run_folder);

// Nothing if `latest` is missing or not of the exact form.
std::optional<int64_t> read_latest(const std::string& run_folder);

// The run that wrote what `latest` names; "" where that cannot be read.
std::string latest_run(const std::string& run_folder);

// Points `latest` at a complete step, atomically; also how a rewind is made to outlive a restart.
void write_latest(const std::string& run_folder, int64_t step);

// Renames the step away, then deletes it: a deletion that is cut short leaves no half step behind.
void delete_step(const std::string& run_folder, int64_t step);

// Deletes all but the `keep` newest steps up to `step`. Those that are known to be damaged do not count, and
// go with what is older than all that stay. Later ones belong to a run that was rewound and stay. Returns
// what could not be deleted, as warnings.
std::vector<std::string> retain(const std::string& run_folder, int64_t step, int64_t keep,
                                const std::vector<int64_t>& damaged = {});

// Removes what dead writers and deleters left. Call it at start, under the run's lock, on one rank, before
// the others look. Returns what was removed.
std::vector<std::string> clean(const std::string& run_folder);

}  // namespace weft::ckpt
