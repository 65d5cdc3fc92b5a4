#pragma once
// Being asked to stop: SIGTERM, SIGINT, SIGUSR1 and SIGHUP (unless ignored, as under nohup). The first sets a
// flag, on which the run saves at the next step boundary and ends with Exit::stopped; the second ends the
// process at once with the same code, which is safe at any moment because checkpoints are published whole.
// What comes within a quarter of a second of the first is the same request: timeout(1) signals twice.
//
// A command that trains several runs holds one around all of them: what comes while no run is there to save
// is known before the next one starts.

namespace weft {

class StopRequest {
 public:
  // Installs the handlers; inside another one shares its flag. announce: while this is the innermost, the
  // handler says on stderr that the run saves (rank 0).
  // Also makes a file that meets a size limit an error of the write (SIGXFSZ), as on a full disk, and a pipe
  // that nobody reads any more (SIGPIPE): a run outlives the `head` or `tee` behind it.
  explicit StopRequest(bool announce = true);
  ~StopRequest();  // puts back the handlers of before
  StopRequest(const StopRequest&) = delete;
  StopRequest& operator=(const StopRequest&) = delete;

  bool requested() const { return signal() != 0; }
  int signal() const;        // the first that came, 0 if none
  const char* name() const;  // "SIGTERM"; "" if none

 private:
  bool announced_before_;
};

}  // namespace weft
