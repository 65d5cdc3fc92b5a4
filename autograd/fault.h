#pragma once
// The fault hook: a test makes one rank fail, stall or compute wrongly at a chosen step and phase.
//   WEFT_FAULT="kind@rank=R,step=S,phase=P"    several separated by ';'; a key left out matches everything
//   step   as metrics.jsonl counts, from 1: step 10 is the one that makes step-10, and its save
//   kind   kill | stop | nan | slow:MS | enospc | eio | flip | skip_exchange
//   phase  load forward backward collective optimizer save.data save.mid save.fsync save.manifest save.rename
//          save.latest evaluate (each batch of an evaluation)
// Without the macro WEFT_FAULTS all of it compiles to nothing.

#include <cstdint>
#include <string>

namespace weft::fault {

enum class Phase {
  load,
  forward,
  backward,
  collective,
  optimizer,
  save_data,
  save_mid,
  save_fsync,
  save_manifest,
  save_rename,
  save_latest,
  evaluate,
};
enum class Kind { kill, stop, nan, slow, enospc, eio, flip, skip_exchange };

#ifdef WEFT_FAULTS

// Replaces all faults by those of `spec` ("" = none). A malformed one throws Error{Exit::usage}.
void configure(const std::string& spec);

// configure() from WEFT_FAULT. Call it once at start, so that a typing error is reported before any work.
void configure_from_environment();

// Where the calling thread is. A thread that never said so counts as being where the last caller was.
void set_position(int rank, int64_t step);

// Executes kill, stop and slow; throws Error{Exit::io} for enospc and eio.
void point(Phase phase);

// True where the caller has to break its own data: nan, flip, skip_exchange.
bool wants(Kind kind, Phase phase);

#else

inline void configure(const std::string&) {}
inline void configure_from_environment() {}
inline void set_position(int, int64_t) {}
inline void point(Phase) {}
inline bool wants(Kind, Phase) { return false; }

#endif

}  // namespace weft::fault
