"""The page faults of a log of KVM through the MMU, under other policies: which of them had been no VM exit?

The guest is bare: it accesses the guest-physical pages that faulted, in their order, one after the other, and what KVM
does at each EPT violation is done by the kernels of `kvm/` and `mmu/`. Its linear addresses are its guest-physical
ones: 1 GB pages map them, whose tables lie above all of its memory and are not counted.

A log has the accesses that faulted, and no others. A policy that maps more is counted exactly: what it had mapped
does not fault. One that takes mappings away would have faults that the log cannot have; those that follow from the
accesses it has are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.exits import ExitReason, FaultClass
from fastmmu.machine.config import Config
from fastmmu.machine.machine import Machine
from fastmmu.ops import AccessName, Op
from fastmmu.paging.state import GuestState
from fastmmu.study.schemes import KVM_LOG as POLICIES
from fastmmu.study.schemes import fields_of
from fastmmu.trace.kvm_log import KvmLog

__all__ = ["POLICIES", "ReplayedFaults", "replay_faults", "runs"]

_GB = 1 << 30
_HIGHEST = 1 << 42  # of guest memory; what lies above is a device's
_LARGE_PAGE = 2 << 20
_ENTRY = 0x67  # present, writable, user, accessed, dirty
_LARGE = 0xE7
_CHUNK = 1 << 12
_RING = 4096
_POINTS = 256  # of the course
_FAULTS = (int(ExitReason.EPT_VIOLATION), int(ExitReason.EPT_MISCONFIG), int(ExitReason.NPF))
_NAMES: dict[int, AccessName] = {Op.READ: "r", Op.WRITE: "w", Op.FETCH: "x"}


@dataclass(frozen=True)
class ReplayedFaults:
    """The faults of a log under a policy.

    ``faults``: of the log, without those of no memory; ``exits``: VM exits that are left, and ``by_class`` of them
    ("build", "dirty", ...); ``left_out``: faults of no memory, or of pages above 4 TB. ``course``: (n, 2) array, faults
    done and exits until then.
    """

    log: str
    policy: str
    faults: int
    exits: int
    by_class: dict[str, int]
    left_out: int
    course: npt.NDArray[np.int64]

    @property
    def saved(self) -> int:
        """Exits that the policy saves."""
        return self.faults - self.exits


@checked
def replay_faults(
    log: KvmLog,
    policies: Sequence[str] = tuple(POLICIES),
    *,
    log_from: float = 0.5,
    progress: Callable[[str, float, int], None] | None = None,
    **config: Any,
) -> Iterator[ReplayedFaults]:
    """The page faults of a log under each policy.

    :param policies: of ``fastmmu.study.schemes.KVM_LOG``. :param log_from: where writes are logged, from this part of
        the faults on. :param config: fields of :class:`Config` for all of them, such as ``host_pages``.
    :param progress: called with the policy, the part that is done, and faults done.
    :raises ConfigError: an unknown policy; a log without faults of guest-physical pages.
    """
    if not 0 <= log_from <= 1:
        raise ConfigError(f"log_from={log_from!r} is no part of the log; give 0 to 1")
    fields = [fields_of(policy, POLICIES, "policy") | config for policy in policies]
    kept = runs(log)
    if not kept.any():
        raise ConfigError(
            f"{log.name}: there are no faults of guest-physical pages in it to run; record kvm:kvm_page_fault, too"
        )
    left_out = int((~log.faults["linear"]).sum() - kept.sum())
    for policy, chosen in zip(policies, fields, strict=True):
        vendor = "intel" if chosen.get("pml") else log.vendor
        chosen = {"vendor": vendor, **chosen}
        yield _replay(log.name, policy, chosen, log.faults[kept], left_out, log_from, progress)


def runs(log: KvmLog) -> npt.NDArray[np.bool_]:
    """Which faults of a log can be run: those of guest-physical memory."""
    faults = log.faults
    found: npt.NDArray[np.bool_] = ~faults["linear"] & (faults["class"] != FaultClass.MMIO)
    return found & (faults["address"] < np.uint64(_HIGHEST))


def _replay(
    name: str,
    policy: str,
    fields: dict[str, Any],
    faults: npt.NDArray[np.void],
    left_out: int,
    log_from: float,
    progress: Callable[[str, float, int], None] | None,
) -> ReplayedFaults:
    top = int(faults["address"].max())
    machine, tables = _machine(top, fields)
    begin = int(log_from * len(faults)) if _logged(policy) else None
    ops, addresses = faults["op"].tolist(), faults["address"].tolist()
    counts = np.zeros(len(FaultClass), np.int64)
    others = 0  # exits that are no violations: PML full
    course = [(0, 0)]
    step = max(1, min(_CHUNK, -(-len(faults) // _POINTS)))
    for first in range(0, len(faults), step):
        last = min(first + step, len(faults))
        for i in range(first, last):
            if i == begin:
                if "ring" in policy:
                    machine.vmm.use_dirty_ring(_RING)
                machine.vmm.start_dirty_log(0)
            machine.access(addresses[i], _NAMES[ops[i]], user=True)
        taken = machine.take_exits()
        mine = taken[taken["gpa"] < np.uint64(tables)]
        violations = np.isin(mine["reason"], _FAULTS)
        counts += np.bincount(mine["class"][violations], minlength=len(counts))
        others += int((~violations).sum())
        course.append((last, int(counts.sum()) + others))
        if progress is not None:
            progress(policy, last / len(faults), last)
    by_class = {FaultClass(kind).name.lower(): int(n) for kind, n in enumerate(counts.tolist()) if n}
    if others:
        by_class["other"] = others
    exits = int(counts.sum()) + others
    return ReplayedFaults(name, policy, len(faults), exits, by_class, left_out, np.array(course, np.int64))


def _logged(policy: str) -> bool:
    return any(word in policy for word in ("log", "pml", "ring"))


def _machine(top: int, fields: dict[str, Any]) -> tuple[Machine, int]:
    """A bare guest with memory up to `top`, its pages mapped one to one, and where their tables begin."""
    gigabytes = top // _GB + 1
    tables = gigabytes * _GB
    size = -(-(1 + -(-gigabytes // 512)) * 0x1000 // _LARGE_PAGE) * _LARGE_PAGE
    config = Config(**{**fields, "memory": tables + size, "exit_log": 1 << 16})
    if config.mmu != "ept":
        raise ConfigError(
            f"mmu={config.mmu!r}: the faults of a log are of guest-physical pages; leave it as it is, ept"
        )
    machine = Machine(config, guest_kernel=False, state=GuestState(cr3=tables))
    memory = machine.guest_memory
    for i in range(-(-gigabytes // 512)):
        memory.write64(tables + 8 * i, tables + 0x1000 * (i + 1) | _ENTRY)
    for i in range(gigabytes):
        memory.write64(tables + 0x1000 + 8 * i, i * _GB | _LARGE)
    return machine, tables
