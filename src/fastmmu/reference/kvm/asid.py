"""Executable specification of ASIDs: how KVM gives them out on a processor of AMD, and what a vCPU finds cached.

    create ─ run on a CPU ─ flush ─ run ... ─ end

A CPU gives out the ASIDs of a generation one after the other, and nothing is given back. A vCPU asks for another where
it runs on another CPU than last time, or where the generation of its own is over (tlb.md §11; new_asid, pre_svm_run,
svm_flush_tlb of Linux).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from ...errors import StateError

__all__ = ["Asid", "AsidAllocator", "Asids", "Run"]

DO_NOTHING, FLUSH_ALL, FLUSH_ASID = 0, 1, 3  # TLB_CONTROL


class Asid(NamedTuple):
    asid: int
    generation: int
    flush_all: bool


class AsidAllocator:
    """Of each CPU its generation, and the ASIDs that this has left. It begins in generation 1 with none, as Linux."""

    def __init__(self, cpus: int = 1, *, asids: int = 32768, min_asid: int = 1) -> None:
        self.given = range(min_asid, asids)
        self.generation = [1] * cpus
        self.left: list[list[int]] = [[] for _ in range(cpus)]

    def new_asid(self, cpu: int = 0) -> Asid:
        if not 0 <= cpu < len(self.left):
            raise StateError(f"cpu={cpu}: there is no such CPU")
        begins = not self.left[cpu]
        if begins:
            self.generation[cpu] += 1
            self.left[cpu] = list(reversed(self.given))
        return Asid(self.left[cpu].pop(), self.generation[cpu], begins)

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, cpu: int) -> tuple[int, int, int, int]:
        """Generation, next ASID, last one, first one."""
        last = self.given[-1]
        return self.generation[cpu], self.left[cpu][-1] if self.left[cpu] else last + 1, last, self.given[0]


class Run(NamedTuple):
    """A VM entry: the ASID, and TLB_CONTROL."""

    asid: int
    control: int


class _Vcpu:
    def __init__(self) -> None:
        self.cpu: int | None = None
        self.asid: Asid | None = None
        self.flush = False


class Asids:
    """vCPUs of a host, by any name, and what its CPUs have cached of them.

    flush_by_asid: a flush is TLB_CONTROL's; else the vCPU gets another ASID.
    """

    def __init__(self, cpus: int, *, asids: int, min_asid: int = 1, flush_by_asid: bool = True) -> None:
        self.allocator = AsidAllocator(cpus, asids=asids, min_asid=min_asid)
        self.flush_by_asid = flush_by_asid
        self.vcpus: dict[Hashable, _Vcpu] = {}
        self.cached: list[dict[int, set[Hashable]]] = [{} for _ in range(cpus)]  # [CPU][ASID] what may be used

    def create(self, name: Hashable) -> None:
        self.vcpus[name] = _Vcpu()

    def end(self, name: Hashable) -> None:
        """Nothing is given back, and nothing flushed."""
        del self.vcpus[name]

    def flush(self, name: Hashable) -> None:
        """What is cached of it may be used no more: by its next VM entry it is gone."""
        vcpu = self.vcpus[name]
        if self.flush_by_asid:
            vcpu.flush = True
        else:
            vcpu.asid = None

    def run(self, name: Hashable, cpu: int) -> Run:
        """VM entry; what it uses from now on is cached under its ASID."""
        vcpu = self.vcpus[name]
        control = FLUSH_ASID if vcpu.flush else DO_NOTHING
        if vcpu.cpu != cpu:
            vcpu.asid = None
        if vcpu.asid is None or vcpu.asid.generation != self.allocator.generation[cpu]:
            vcpu.asid = self.allocator.new_asid(cpu)
            if vcpu.asid.flush_all:
                control = FLUSH_ALL
        vcpu.cpu, vcpu.flush = cpu, False
        if control == FLUSH_ALL:
            self.cached[cpu].clear()
        elif control == FLUSH_ASID:
            self.cached[cpu].pop(vcpu.asid.asid, None)
        return Run(vcpu.asid.asid, control)

    def asid(self, name: Hashable) -> int:
        """That of its physical CPU; 0: it has none."""
        asid = self.vcpus[name].asid
        return asid.asid if asid else 0

    def use(self, name: Hashable, what: Hashable) -> set[Hashable]:
        """The guest uses a translation, by any name; all that are cached under its ASID on its CPU."""
        vcpu = self.vcpus[name]
        assert vcpu.asid is not None, f"{name!r} is on no CPU"
        assert vcpu.cpu is not None
        cached = self.cached[vcpu.cpu].setdefault(vcpu.asid.asid, set())
        cached.add(what)
        return cached
