"""A log of real KVM: what it says, and its page faults under other policies."""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.study.kvm_log.run import POLICIES, ReplayedFaults, replay_faults

__all__ = ["POLICIES", "ReplayedFaults", "replay_faults"]

COMMAND, HELP, PLACE = "kvm-log", "a log of KVM's trace points, and its page faults under other policies", 16

_HOMES = {"fastmmu.study.kvm_log.run": __all__}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
