"""Programs on the physical CPUs of one host; `threads`: as threads of processes, on the vCPUs of one machine."""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.study.consolidate.run import Consolidation, Turn, consolidate
    from fastmmu.study.consolidate.threads import Thread, Threaded, run_threads, threads_of

__all__ = ["Consolidation", "Thread", "Threaded", "Turn", "consolidate", "run_threads", "threads_of"]

COMMAND, HELP, PLACE = "host", "several virtual machines on several CPUs", 3

_HOMES = {
    "fastmmu.study.consolidate.run": ["Consolidation", "Turn", "consolidate"],
    "fastmmu.study.consolidate.threads": ["Thread", "Threaded", "run_threads", "threads_of"],
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
