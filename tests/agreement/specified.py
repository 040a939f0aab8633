"""The executable specification of KVM behind the methods of `fastmmu.Machine`: what runs on one runs on both."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu import Config, Exit, MemorySlot
from fastmmu.exits import ExitReason
from fastmmu.reference import SparseMemory, State
from fastmmu.reference.kvm import Came, Kvm, Policy, Slot

from .guest import Guest

__all__ = ["SpecifiedGuest", "SpecifiedMachine", "policy_of"]


def policy_of(config: Config) -> Policy:
    """What `Config` documents of KVM's generations and parameters."""
    shadow, rules = config.mmu == "shadow", config.rules
    return Policy(
        shadow=shadow,
        rules=rules,
        ad=shadow or config.ept_ad or config.vendor == "amd",
        unsync=rules.unsync if config.unsync is None else config.unsync,
        flooding=rules.flooding,
        prefetch=rules.prefetch,
        fast=rules.fast_faults and not shadow,
        mmio_caching=rules.mmio_caching and config.mmio_caching,
        tdp=not shadow and config.tdp_mmu,
        eager_split=rules.eager_page_split and config.eager_page_split,
        nx_huge=config.nx_huge_pages,
        pml=config.pml,
        limit=config.table_pages,
    )


class Words:
    """Guest-physical memory as an array of words; only words, one at a time."""

    def __init__(self, memory: SparseMemory) -> None:
        self.memory = memory

    def __getitem__(self, word: int) -> int:
        return self.memory.read64(word << 3)

    def __setitem__(self, word: int, value: int) -> None:
        self.memory.write64(word << 3, value)


class SpecifiedMachine:
    """Also its own `vmm` and `guest_memory`."""

    def __init__(
        self,
        config: Config,
        *,
        guest_kernel: bool = False,
        state: dict[str, Any],
        slots: tuple[MemorySlot, ...] = (),
        remember: bool = False,
    ) -> None:
        assert not guest_kernel
        self.config = config
        host = config.host_pages or "4k"
        memory = SparseMemory(nbytes=1 << 46)
        placed = [Slot(0, config.memory_bytes >> 12, host=host)]
        placed += [Slot(s.gpa >> 12, s.size >> 12, s.readonly, emulated=s.emulated, host=s.host) for s in slots]
        self.kvm = Kvm(
            policy_of(config),
            State(**state),
            memory,
            placed,
            amd=config.vendor == "amd",
            guest_ad_checked=config.guest_ad_checked,
            remember=remember,
        )
        self.u64 = Words(memory)

    @property
    def vmm(self) -> SpecifiedMachine:
        return self

    @property
    def guest_memory(self) -> SpecifiedMachine:
        return self

    # ---- the guest --------------------------------------------------------------------------------------------

    def access(self, la: int, access: str = "r", *, user: bool = False) -> Came:
        return self.kvm.access(la, access, user)

    def store(self, la: int, value: int, size: int = 8) -> Came:
        assert size == 8 or la >> 12 == 0xFEE00, "what the specification writes to memory has 8 bytes"
        return self.kvm.access(la, "w", False, value)

    def mov_cr3(self, value: int) -> None:
        self.kvm.mov_cr3(value)

    def mov_cr4(self, value: int) -> None:
        self.kvm.mov_cr4(value)

    def mov_from_cr4(self) -> int:
        if self.kvm.amd:
            self.kvm.exit_instruction(ExitReason.CR_ACCESS)
        return self.kvm.vm.state.cr4

    def invlpg(self, la: int) -> None:
        self.kvm.invlpg(la)

    def exit_instruction(self, reason: int) -> None:
        self.kvm.exit_instruction(ExitReason(reason))

    @property
    def apic(self) -> SpecifiedMachine:
        """Of the local APIC no more than what CR8 exits for: a processor without a TPR shadow."""
        return self

    def write_cr8(self, value: int) -> None:
        self._cr8(8)

    def read_cr8(self) -> None:
        self._cr8(8 | 1 << 4)

    def _cr8(self, qualification: int) -> None:
        if not self.config.tpr_shadow:
            self.kvm.exit(ExitReason.CR_ACCESS, qualification)
            self.kvm.entered()

    # ---- the host ---------------------------------------------------------------------------------------------

    def start_dirty_log(self, number: int, *, manual: bool = False, initially_set: bool = False) -> None:
        self.kvm.start_dirty_log(number, manual=manual, initially_set=initially_set)

    def dirty_log(self, number: int) -> npt.NDArray[np.bool_]:
        log = np.zeros(self.kvm.slot(number).pages, np.bool_)
        log[sorted(self.kvm.dirty_log(number))] = True
        return log

    def clear_dirty_log(self, number: int, first: int, count: int) -> None:
        self.kvm.clear_dirty_log(number, first, count)

    def stop_dirty_log(self, number: int) -> None:
        self.kvm.stop_dirty_log(number)

    def delete_slot(self, number: int) -> None:
        self.kvm.delete_slot(number)

    def swap_out(self, number: int, page: int) -> bool:
        return self.kvm.swap_out(number, page)

    def young(self, number: int, page: int, *, clear: bool = False) -> bool:
        return self.kvm.young(number, page, clear=clear)

    def touch(self, number: int, first: int, count: int) -> None:
        self.kvm.touch(number, first, count)

    # ---- what came of it --------------------------------------------------------------------------------------

    def counters(self) -> dict[str, Any]:
        """The parts of the counters of a machine, and of its VMM, that are specified."""
        small, large = self.kvm.mapped_pages()
        unsync = sum(page.unsync for page in self.kvm.vm.tables.pages.values())
        exits = {reason.name.lower(): n for reason, n in self.kvm.vm.exits.items()}
        found: dict[str, Any] = {**self.kvm.vm.count, "vm_exits": sum(exits.values()), "exits_by_reason": exits}
        return {**found, "pages": (small, large, 0), "unsync": unsync}

    def exit_log(self) -> list[tuple[int, int, int, str]]:
        """Reason, qualification, error code, class of each VM exit."""
        return [(int(e.reason), e.qualification, e.error_code, e.fault_class) for e in self.kvm.vm.log]

    def stats(self) -> dict[str, int]:
        """KVM's statistics, those that are specified."""
        vm = self.kvm.vm
        names = ("pf_taken", "pf_fixed", "pf_emulate", "pf_fast", "remote_tlb_flush_requests", "tlb_flush")
        small, large = self.kvm.mapped_pages()
        pages = vm.tables.pages.values()
        found = {name: vm.stats.count[name] for name in (*names, "insn_emulation", "mmio_exits")}
        found |= {
            "exits": sum(vm.exits.values()),
            "pf_spurious": vm.count["pf_spurious"] + vm.count["ept_spurious"],
            "pf_guest": vm.count["pf_guest"],
            "pf_mmio_spte_created": vm.count["mmio_marked"],
            "invlpg": vm.exits[ExitReason.INVLPG],
            "io_exits": vm.exits[ExitReason.IO_INSTRUCTION],
            "mmu_cache_miss": 0 if vm.policy.tdp else vm.tables.made - vm.stats.tables_early,
            "mmu_shadow_zapped": 0 if vm.policy.tdp else vm.stats.count["mmu_shadow_zapped"],
            "mmu_pte_write": vm.count["pte_writes"],
            "mmu_flooded": vm.count["flooded"],
            "mmu_recycled": vm.count["recycled"],
            "mmu_unsync": sum(page.unsync for page in pages),
            "nx_lpage_splits": sum(page.split for page in pages),
            "pages_4k": small,
            "pages_2m": large,
        }
        return found


class SpecifiedGuest(Guest):
    """A recorded guest on the specification."""

    def make_machine(self, config: Config, state: dict[str, int], slots: tuple[MemorySlot, ...]) -> Any:
        machine = SpecifiedMachine(config, state=state, slots=slots, remember=True)
        machine.kvm.note = self._note_exit
        return machine

    def _note_exit(self, reason: ExitReason, qualification: int, error_code: int) -> None:
        self.note(Exit(reason, qualification, 0, 0, error_code, 0))
