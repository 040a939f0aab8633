"""Executable specification of a 4-level guest on KVM: what it sees, the VM exits, the VMM's tables (kvm_policy.md).

    instruction ─ processor: walk of memory ─ VM exit ─ KVM: `shadow` or `map` (EPT) ─ again

The processor has no TLB: each access walks. A TLB that is flushed where it must be makes the same exits, for a guest
that invalidates what it changed; `remember` keeps translations as such a TLB does, which only makes this faster.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ...dtypes import StepKind
from ...exits import ExitReason, Qualification
from ..paging.ept import Ept
from ..paging.memory import SparseMemory
from ..paging.npt import Npt
from ..paging.outcome import EptMisconfig, EptViolation, Mapped, NestedPageFault, Outcome, PageFault, PmlFull
from ..paging.state import State
from ..paging.walk import walk
from . import log, view
from .map import Done, Fault, class_of, load_again, map_direct, nested_fault
from .memory import LOG, HostMemory
from .shadow import shadow_fault
from .stats import CURRENT, GUEST
from .sync import invalidate, load_root, new_registers, root_kept, sync_below, wrote_table
from .tables import ALL, Mark, Role, Tables
from .view import Mapping
from .vm import Exited, Log, Policy, Slot, Vm

__all__ = ["Came", "Kvm", "Log", "Mapping", "Policy", "Slot", "Tables"]

OWNED_CR4 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 16  # PVI TSD DE PCE OSFXSR OSXMMEXCPT FSGSBASE
PGE = 1 << 7
SMEP = 1 << 20
ROLE_CR4 = 1 << 20 | 1 << 21  # SMEP, SMAP: of those that a 4-level guest can change
EMPTY_LOG = 511


@functools.lru_cache(64)
def in_force(state: State, user: bool) -> State:
    return replace(state, cpl=3 if user else 0)


@functools.lru_cache(64)
def under_shadow(state: State, root: int) -> State:
    """Registers of the processor: CR0.WP and NXE are on, PGE is off, whatever the guest has (kvm_policy.md §2.1)."""
    return replace(state, cr0=state.cr0 | 1 << 16, cr3=root, cr4=state.cr4 & ~PGE, efer=state.efer | 1 << 11)


class Came(NamedTuple):
    """What an access came to: its guest-physical address, or #PF."""

    gpa: int | None
    error_code: int | None = None
    cr2: int | None = None


class Kvm:
    """A virtual machine. Its methods are instructions of the guest, then operations of the host."""

    def __init__(
        self,
        policy: Policy,
        state: State,
        memory: SparseMemory,
        slots: list[Slot],
        *,
        amd: bool = False,
        guest_ad_checked: bool = True,
        remember: bool = False,
    ) -> None:
        self.vm = Vm(policy, state, memory, slots)
        self.host = HostMemory(memory, self.vm.tables, ept=not policy.shadow and not amd)
        self.amd, self.guest_ad_checked = amd, guest_ad_checked
        self.pml_index = EMPTY_LOG
        self.remember = remember
        self.note: Callable[[ExitReason, int, int], None] | None = (
            None  # called at each exit: qualification, error code
        )
        self.translations: dict[tuple[int, str, bool], int] = {}
        self.walked: set[int] = set()  # addresses of guest entries behind these translations
        self.reload()

    # ---- the processor ----------------------------------------------------------------------------------------

    def registers(self, user: bool) -> State:
        """The guest's, with the privilege of the access."""
        return in_force(self.vm.state, user)

    def attempt(self, la: int, access: str, user: bool) -> Outcome:
        """One walk: of the shadow tables as ordinary ones, or of the guest's over EPT or AMD's nested paging."""
        vm, state = self.vm, self.registers(user)
        root = self.host.address(vm.root)
        if vm.policy.shadow:
            return walk(self.host, under_shadow(state, root), la, access)
        logged = any(slot and slot.log for slot in vm.slots)
        second = Npt(ncr3=root, maxphyaddr=46) if self.amd else Ept(
            eptp=root | 0x1E | vm.policy.ad << 6, maxphyaddr=46,
            guest_ad_checked=self.guest_ad_checked,
            pml=(LOG, self.pml_index) if vm.policy.pml and logged else None,
        )  # fmt: skip
        outcome = walk(self.host, state, la, access, ept=second)
        if outcome.pml_index is not None:
            self.pml_index = outcome.pml_index
        self.walked |= {step.gpa for step in outcome.steps if step.kind == StepKind.GUEST}
        return outcome

    def access(self, la: int, access: str = "r", user: bool = False, value: int | None = None) -> Came:
        """An access; `value`: of a store of 8 bytes."""
        key = la >> 12, access, user
        if key in self.translations:
            gpa = self.translations[key] | la & 0xFFF
            self.store_at(gpa, value)
            return Came(gpa)
        while True:
            outcome = self.attempt(la, access, user)
            if isinstance(outcome, Mapped):
                if self.remember:
                    self.translations[key] = outcome.pa & ~0xFFF
                self.store_at(outcome.pa, value)
                return Came(outcome.pa)
            came = self.stopped(outcome, la, access, user, value)
            self.entered()
            if came:
                return came

    def store_at(self, gpa: int, value: int | None) -> None:
        if value is not None:
            self.vm.memory.write64(gpa, value)
            if gpa in self.walked:
                self.forget()

    def forget(self) -> None:
        self.translations.clear()
        self.walked.clear()

    def entered(self) -> None:
        """What holds at VM entry: a root is there, and no translation is cached that lost something."""
        if self.vm.roots[0] is None:
            self.reload()
        if self.vm.tables.lost:
            self.vm.tables.lost = False
            self.forget()

    def reload(self) -> None:
        if self.vm.policy.shadow:
            load_root(self.vm, self.vm.state.cr3)
        else:
            self.vm.roots = [self.vm.tables.make(0, Role(4, True, ALL))]

    # ---- VM exits ---------------------------------------------------------------------------------------------

    def exit(self, reason: ExitReason, qualification: int = 0, error_code: int = 0) -> None:
        """Every exit reads the processor's log (kvm_policy.md §4.2)."""
        if self.note:
            self.note(reason, qualification, error_code)
        self.vm.log.append(Exited(reason, qualification, error_code))
        self.vm.exits[reason] += 1
        self.vm.stats.entered()
        self.drain()

    def drain(self) -> None:
        first = self.pml_index + 1 if self.pml_index <= EMPTY_LOG else 0
        for i in range(first, EMPTY_LOG + 1):
            self.vm.wrote(self.host.log[LOG + 8 * i] >> 12)
        self.pml_index = EMPTY_LOG

    def stopped(self, outcome: Outcome, la: int, access: str, user: bool, value: int | None) -> Came | None:
        """What stopped the access is handled: what it came to; None: it is tried again."""
        if isinstance(outcome, PageFault):
            if not self.vm.policy.shadow:
                self.forget()
                return Came(None, outcome.error_code, outcome.cr2)
            self.exit(ExitReason.EXCEPTION_NMI, la, outcome.error_code)
            return self.on_page_fault(la, access, user, value, outcome.error_code)
        if isinstance(outcome, EptViolation):
            self.exit(ExitReason.EPT_VIOLATION, outcome.qualification)
            q = outcome.qualification
            fault = Fault(outcome.gpa, outcome.gpa, bool(q & 2), bool(q & 4), bool(q >> 3 & 7))
            return self.on_ept_violation(fault, bool(q & Qualification.TRANSLATED), la, access, user)
        if isinstance(outcome, EptMisconfig):
            self.exit(ExitReason.EPT_MISCONFIG)
            return self.on_ept_misconfig(Fault(outcome.gpa, outcome.gpa, False, False, False), la, access, user)
        if isinstance(outcome, NestedPageFault):
            self.exit(ExitReason.NPF, outcome.error_code)
            fault, reserved, final = nested_fault(outcome)
            where = la, access, user
            return self.on_ept_misconfig(fault, *where) if reserved else self.on_ept_violation(fault, final, *where)
        assert isinstance(outcome, PmlFull), outcome
        self.exit(ExitReason.PML_FULL)
        return None

    def mark_at(self, address: int) -> Mark | None:
        """The mark of MMIO for an address, if the slots are those of then (kvm_policy.md §4.4)."""
        _, _, entry = list(self.vm.tables.path(self.vm.root, address))[-1]
        return entry if isinstance(entry, Mark) and entry.generation == self.vm.generation else None

    def on_page_fault(self, la: int, access: str, user: bool, value: int | None, code: int) -> Came | None:
        vm = self.vm
        known = self.mark_at(la) if code & 8 else None
        stats = vm.stats
        stats.count["pf_taken"] += known is None
        kind = "w" if access == "rw" else access
        before = vm.count["dirty_faults"], vm.count["swap_ins"]
        done, gpa = shadow_fault(vm, self.registers(user), la, kind, bool(code & 1), known)
        vm.log[-1].fault_class = class_of(vm, done, gpa >> 12, code & 3 == 3, *before)
        if isinstance(done, PageFault):
            vm.count["pf_guest"] += 1
            return Came(None, done.error_code, done.cr2)
        if done is Done.RETRY:
            return None
        if done in (Done.FIXED, Done.SPURIOUS):
            vm.count["pf_fixed" if done is Done.FIXED else "pf_spurious"] += 1
            stats.count["pf_fixed"] += done is Done.FIXED
            return None
        stats.count["pf_emulate"] += known is None
        if load_again(vm, done, gpa, access):
            return None
        stats.emulated(gpa, mmio=done is Done.EMULATE)
        if done is Done.EMULATE:
            vm.count["mmio"] += 1
            return Came(gpa)
        vm.count["pf_emulate"] += 1
        vm.wrote(gpa >> 12)
        if value is None:  # a store of which nothing is known
            wrote_table(vm, gpa & ~0xFFF, 4096)
        else:
            vm.memory.write64(gpa, value)
            wrote_table(vm, gpa, 8)
        return Came(gpa)

    def no_memory(self, gpa: int, la: int, access: str, user: bool) -> Came:
        """KVM emulates the instruction. To its own walk a table that lies in no memory holds no present entry."""
        outcome = walk(self.vm.memory, self.registers(user), la, access, write=False)
        self.vm.stats.emulated(gpa, mmio=isinstance(outcome, Mapped))
        if isinstance(outcome, PageFault):
            self.forget()
            return Came(None, outcome.error_code, outcome.cr2)
        self.vm.count["mmio"] += 1
        return Came(gpa)

    def on_ept_violation(self, fault: Fault, translated: bool, la: int, access: str, user: bool) -> Came | None:
        vm = self.vm
        dirty = vm.count["dirty_faults"]
        done = self.map_direct(fault)
        vm.count[f"violations_{vm.log[-1].fault_class}"] += 1
        if done is Done.EMULATE:
            if load_again(vm, done, fault.gpa, access):
                return None
            assert translated or fault.slot is None, f"A or D of a table at {fault.gpa:#x}, which is read-only"
            return self.no_memory(fault.gpa, la, access, user)
        vm.count["ept_build"] += done is Done.FIXED and vm.count["dirty_faults"] == dirty
        vm.count["ept_spurious"] += done is Done.SPURIOUS
        return None

    def on_ept_misconfig(self, fault: Fault, la: int, access: str, user: bool) -> Came | None:
        self.vm.log[-1].fault_class = "mmio"
        if not self.mark_at(fault.gpa):
            done = self.map_direct(fault)
            if done is not Done.EMULATE:
                return None  # memory by now
        return self.no_memory(fault.gpa, la, access, user)

    def map_direct(self, fault: Fault) -> Done:
        """A direct fault, in the statistics."""
        stats, before = self.vm.stats, (self.vm.count["dirty_faults"], self.vm.count["swap_ins"])
        done = map_direct(self.vm, fault)
        denied = done is Done.FAST or (fault.write and fault.present)
        self.vm.log[-1].fault_class = class_of(self.vm, done, fault.gfn, denied, *before)
        stats.count["pf_taken"] += 1
        stats.count["pf_fixed"] += done in (Done.FIXED, Done.FAST)
        stats.count["pf_emulate"] += done is Done.EMULATE
        return done

    # ---- other instructions -----------------------------------------------------------------------------------

    def exit_instruction(self, reason: ExitReason) -> None:
        """An instruction that always exits, such as CPUID."""
        self.exit(reason)
        self.entered()

    def mov_cr3(self, value: int) -> None:
        self.vm.state = replace(self.vm.state, cr3=value)
        self.forget()
        if self.vm.policy.shadow:
            self.exit(ExitReason.CR_ACCESS, 3)
            self.vm.stats.owe(CURRENT)
            if not root_kept(self.vm, value):
                self.vm.stats.flush()  # before the root is made, which is another round to the VM entry
            load_root(self.vm, value)
            self.entered()

    def mov_cr4(self, value: int) -> None:
        """Changes of PGE, SMEP, SMAP and the guest's own bits (kvm_policy.md §2.4)."""
        vm, old = self.vm, self.vm.state.cr4
        vm.state = replace(vm.state, cr4=value)
        self.forget()
        intercepted = ~0 if self.amd else ~OWNED_CR4 if vm.policy.shadow else ~(OWNED_CR4 | PGE)
        if not (old ^ value) & intercepted and not self.amd:
            return
        self.exit(ExitReason.CR_ACCESS, 4)
        vm.stats.owe(GUEST, bool((old ^ value) & PGE))
        vm.stats.owe(CURRENT, not (old ^ value) & PGE and bool(value & ~old & SMEP))
        vm.stats.flush()  # before roots are made, or brought in sync
        if vm.policy.shadow and (old ^ value) & ROLE_CR4:
            new_registers(vm, vm.state.cr3)
        elif vm.policy.shadow and (old ^ value) & PGE:
            for root in vm.roots:
                if root:
                    sync_below(vm, root)
        self.entered()

    def invlpg(self, la: int) -> None:
        self.forget()
        if self.vm.policy.shadow:
            self.exit(ExitReason.INVLPG, la)
            for root in self.vm.roots:
                if root:
                    invalidate(self.vm, root, la)
            self.entered()

    # ---- the host ---------------------------------------------------------------------------------------------

    def slot(self, number: int) -> Slot:
        slot = self.vm.slots[number]
        assert slot
        return slot

    def paid(self, flush: bool) -> None:
        """An operation of the host ends, with a flush of every vCPU or without."""
        self.vm.stats.request(flush)
        self.entered()

    def start_dirty_log(self, number: int, *, manual: bool = False, initially_set: bool = False) -> None:
        self.drain()
        begun = self.slot(number).log is None
        log.start(self.vm, self.slot(number), manual=manual, initial=initially_set)
        self.forget()
        self.paid(begun and not (manual and initially_set))

    def dirty_log(self, number: int) -> set[int]:
        self.drain()
        found = log.get(self.vm, self.slot(number))
        kept = self.slot(number).log
        self.paid(bool(found and kept and not kept.manual))
        return found

    def clear_dirty_log(self, number: int, first: int, count: int) -> None:
        self.drain()
        flush = log.clear(self.vm, self.slot(number), first, count)
        self.paid(flush)

    def stop_dirty_log(self, number: int) -> None:
        self.drain()
        flush = log.stop(self.vm, self.slot(number))
        self.paid(flush)

    def delete_slot(self, number: int) -> None:
        """Every table goes with it (kvm_policy.md §2.5)."""
        self.vm.slots[number] = None
        self.vm.generation += 1
        self.vm.zap_all()
        made = self.vm.tables.made
        self.vm.stats.request(not self.vm.policy.tdp)  # no root leads to those of the TDP MMU any more
        self.forget()
        self.entered()
        self.vm.stats.tables_early = self.vm.tables.made - made

    def swap_out(self, number: int, page: int) -> bool:
        done = log.swap_out(self.vm, self.slot(number), self.slot(number).base + page)
        self.entered()
        return done

    def young(self, number: int, page: int, *, clear: bool = False) -> bool:
        found = log.young(self.vm, self.slot(number).base + page, clear=clear)
        self.entered()
        return found

    def touch(self, number: int, first: int, count: int) -> None:
        """The host writes pages of an untouched slot."""
        slot = self.slot(number)
        slot.state |= {slot.base + page: "present" for page in range(first, first + count)}

    # ---- to look at -------------------------------------------------------------------------------------------

    def leaves(self) -> set[Mapping]:
        """What the tables below the root in use map."""
        return set(view.leaves(self.vm))

    def table_pages(self) -> list[tuple[int, int, bool, int, int, bool]]:
        """(gfn, level, direct, access, registers, unsync) of every table page."""
        return view.table_pages(self.vm)

    def mapped_pages(self) -> tuple[int, int]:
        """Leaves there are, of 4 KB and of 2 MB."""
        return view.mapped_pages(self.vm)
