from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu.cache import CacheHierarchy
from fastmmu.kvm.asid_py import AsidAllocator
from fastmmu.machine.apic_port import Delivered
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel
from fastmmu.machine.exit_log import ExitLog
from fastmmu.machine.machine import Machine
from fastmmu.machine.policy import Policy
from fastmmu.machine.slots import MemorySlot
from fastmmu.paging.memory import PhysicalMemory
from fastmmu.paging.state import GuestState
from fastmmu.tlb.tlb import TLB

class Host:
    memory: PhysicalMemory
    cpus: tuple[TLB, ...]
    caches: tuple[CacheHierarchy, ...]
    asids: AsidAllocator
    def __init__(
        self,
        vms: Sequence[Config | tuple[Config, int]],
        *,
        cpus: int | None = None,
        guest_kernel: bool = True,
        state: GuestState | None = None,
        omit: Sequence[str] = (),
        memory: int | str | None = None,
        policy: Policy | None = None,
    ) -> None: ...
    def add(
        self,
        config: Config,
        vcpus: int = 1,
        *,
        guest_kernel: bool = True,
        policy: Policy | None = None,
        state: GuestState | None = None,
        slots: Sequence[MemorySlot] = (),
    ) -> Machine: ...
    def add_vcpu(self, machine: Machine) -> int: ...
    def remove(self, ends: int | Machine) -> None: ...
    def place(self, vcpu: int, cpu: int) -> Machine: ...
    def run(
        self,
        vcpu: int,
        cpu: int,
        op: npt.NDArray[np.uint8],
        size: npt.NDArray[np.uint8],
        addr: npt.NDArray[np.uint64],
        out: npt.NDArray[np.uint64] | None = None,
        first: int = 0,
    ) -> int: ...
    def idle(self, vcpu: int) -> None: ...
    def vpid(self, vcpu: int) -> int: ...
    def asid(self, vcpu: int) -> int: ...
    def counters(self, vcpu: int) -> dict[str, Any]: ...
    def exit_log(self, vcpu: int, costs: CostModel | None = None) -> ExitLog: ...
    def deliveries(self, vcpu: int) -> list[Delivered]: ...
    def totals(self) -> dict[str, int]: ...
    @property
    def vcpus(self) -> int: ...
    @property
    def machines(self) -> tuple[Machine, ...]: ...
    def vcpus_of(self, machine: Machine) -> tuple[int, ...]: ...
    @property
    def free_memory(self) -> int: ...
