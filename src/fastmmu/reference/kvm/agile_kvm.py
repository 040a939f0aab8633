"""Executable specification of a guest of 4 levels under agile paging: what it sees, the VM exits, the modes of its
tables (agile.md §4). What is not said here is as of shadow paging, and of EPT where a walk is nested."""

from __future__ import annotations

import functools
from dataclasses import replace

from ...exits import ExitReason, Qualification
from ..paging.agile import walk_agile
from ..paging.ept import Ept
from ..paging.memory import SparseMemory
from ..paging.outcome import EptMisconfig, EptViolation, Mapped, Outcome, PageFault
from ..paging.state import State
from .agile import Rules, Second, Switching
from .kvm import OWNED_CR4, PGE, Came, Kvm, under_shadow
from .map import Done, Fault, class_of, load_again, map_direct
from .memory import SECOND, TABLES, HostMemory
from .sync import load_root, wrote_table
from .tables import Mark
from .vm import Policy, Slot

__all__ = ["AgileKvm"]


@functools.lru_cache(64)
def without_globals(state: State) -> State:
    return replace(state, cr4=state.cr4 & ~PGE)


class AgileKvm(Kvm):
    """A virtual machine. nested: levels of the guest's own tables in the last walk; walks: so many so far."""

    def __init__(self, policy: Policy, rules: Rules, state: State, memory: SparseMemory, slots: list[Slot]) -> None:
        self.second: Second | None = None
        self.outside = False  # a VM exit, and no VM entry since
        super().__init__(policy, state, memory, slots)
        self.second = Second(self.vm)
        self.host = HostMemory(memory, self.vm.tables, ept=False, second=self.second.tables)
        self.modes = Switching(self.vm, self.second, rules)
        self.walks = self.nested = 0
        self.by_nested = [0] * 6
        self.switched = False
        self.load(state.cr3)

    def reload(self) -> None:
        if self.second is not None:
            self.load(self.vm.state.cr3)

    # ---- roots ----------------------------------------------------------------------------------------------------

    @property
    def root_gfn(self) -> int:
        return (self.vm.state.cr3 & self.vm.state.frame) >> 12

    def load(self, cr3: int) -> None:
        """The root of a CR3, of either mode. A shadow root that was in use is kept."""
        vm = self.vm
        self.switched = self.modes.root(self.root_gfn)
        if not self.switched:
            load_root(vm, cr3)
        elif vm.roots[0] and len(vm.roots) > 1:
            vm.roots = [None, *vm.roots[:-1]]
        else:
            vm.roots[0] = None

    def exit(self, reason: ExitReason, qualification: int = 0, error_code: int = 0) -> None:
        super().exit(reason, qualification, error_code)
        self.outside = True

    def entered(self) -> None:
        """Before VM entry: an interval may have ended, the root in use may be of the other mode."""
        if not self.outside:
            return
        self.outside = False
        rules, root = self.modes.rules, self.root_gfn
        now = 1 + (self.walks // rules.interval if rules.interval else 0)
        ended = now != self.modes.now
        if ended:
            self.modes.ends(now, root)
        if (root in self.vm.tables.nested) != self.switched or (not self.switched and self.vm.roots[0] is None):
            self.load(self.vm.state.cr3)
            if ended and self.vm.roots[0]:
                self.modes.refill(self.vm.roots[0])
        self.vm.tables.lost = False

    # ---- the processor ----------------------------------------------------------------------------------------

    def attempt(self, la: int, access: str, user: bool) -> Outcome:
        rules, modes = self.modes.rules, self.modes
        timed = rules.interval and rules.back != "never" and self.vm.tables.nested
        if timed and self.walks >= modes.now * rules.interval:
            self.exit(ExitReason.EXTERNAL_INTERRUPT)
            self.entered()
        state = self.registers(user)
        second = self.second
        assert second is not None
        root = self.root_gfn << 12 if self.switched else None
        shadow = self.root_gfn << 12 if self.switched else self.host.address(self.vm.root)
        ept = Ept(eptp=self.host.address(second.root) + SECOND - TABLES | 0x5E, maxphyaddr=46)
        outcome, self.nested = walk_agile(
            self.host, under_shadow(state, shadow), without_globals(state), la, access, ept=ept, root=root
        )
        self.walks += 1
        self.by_nested[self.nested] += isinstance(outcome, Mapped)
        return outcome

    def stopped(self, outcome: Outcome, la: int, access: str, user: bool, value: int | None) -> Came | None:
        if isinstance(outcome, PageFault) and self.nested:
            return Came(None, outcome.error_code, outcome.cr2)
        if isinstance(outcome, PageFault):
            self.exit(ExitReason.EXCEPTION_NMI, la, outcome.error_code)
            before = self.vm.count["pf_emulate"]
            came = self.on_page_fault(la, access, user, value, outcome.error_code)
            if self.vm.count["pf_emulate"] > before and came and came.gpa is not None:
                self.wrote(came.gpa >> 12)
            return came
        if isinstance(outcome, EptMisconfig):
            self.exit(ExitReason.EPT_MISCONFIG)
            return self.on_ept_misconfig(Fault(outcome.gpa, outcome.gpa, False, False, False), la, access, user)
        assert isinstance(outcome, EptViolation), outcome
        q = outcome.qualification
        self.exit(ExitReason.EPT_VIOLATION, q)
        fault = Fault(outcome.gpa, outcome.gpa, bool(q & 2), bool(q & 4), bool(q >> 3 & 7))
        translated = bool(q & Qualification.TRANSLATED)
        if not translated and self.vm.tracked(fault.gfn):
            self.modes.move(fault.gfn)  # no instruction writes there that could be emulated
        done = self.map_direct(fault)
        self.vm.count[f"violations_{self.vm.log[-1].fault_class}"] += 1
        if done is Done.EMULATE_STORE:
            return self.emulated_store(fault.gpa, value)
        return self.after_violation(done, fault, translated, la, access, user)

    def wrote(self, gfn: int) -> None:
        self.modes.wrote(gfn, gfn == self.root_gfn and not self.switched)

    def emulated_store(self, gpa: int, value: int | None) -> Came:
        """A store into a shadowed table, which came through nested tables."""
        vm = self.vm
        vm.stats.emulated(gpa, mmio=False)
        vm.count["pf_emulate"] += 1
        vm.wrote(gpa >> 12)
        if value is None:
            wrote_table(vm, gpa & ~0xFFF, 4096)
        else:
            vm.memory.write64(gpa, value)
            wrote_table(vm, gpa, 8)
        self.wrote(gpa >> 12)
        return Came(gpa)

    def after_violation(
        self, done: Done, fault: Fault, translated: bool, la: int, access: str, user: bool
    ) -> Came | None:
        if done is Done.EMULATE:
            if load_again(self.vm, done, fault.gpa, access):
                return None
            assert translated or fault.slot is None, f"A or D of a table at {fault.gpa:#x}, which is read-only"
            return self.no_memory(fault.gpa, la, access, user)
        self.vm.count["ept_build"] += done is Done.FIXED
        self.vm.count["ept_spurious"] += done is Done.SPURIOUS
        return None

    def on_ept_misconfig(self, fault: Fault, la: int, access: str, user: bool) -> Came | None:
        assert self.second is not None
        self.vm.log[-1].fault_class = "mmio"
        _, _, entry = list(self.second.tables.path(self.second.root, fault.gpa))[-1]
        current = isinstance(entry, Mark) and entry.generation == self.second.generation
        if not current and self.map_direct(fault) is not Done.EMULATE:
            return None  # memory by now
        return self.no_memory(fault.gpa, la, access, user)

    def map_direct(self, fault: Fault) -> Done:
        assert self.second is not None
        stats, before = self.vm.stats, (self.vm.count["dirty_faults"], self.vm.count["swap_ins"])
        if fault.write and fault.present and self.vm.tracked(fault.gfn):
            done = Done.EMULATE_STORE
        else:
            done = map_direct(self.second, fault)
        denied = done is Done.FAST or (fault.write and fault.present)
        self.vm.log[-1].fault_class = class_of(self.vm, done, fault.gfn, denied, *before)
        stats.count["pf_taken"] += 1
        stats.count["pf_fixed"] += done in (Done.FIXED, Done.FAST)
        stats.count["pf_emulate"] += done in (Done.EMULATE, Done.EMULATE_STORE)
        return done

    # ---- other instructions -----------------------------------------------------------------------------------

    def mov_cr3(self, value: int) -> None:
        self.vm.state = replace(self.vm.state, cr3=value)
        self.exit(ExitReason.CR_ACCESS, 3)
        self.load(value)
        self.entered()

    def invlpg(self, la: int) -> None:
        """Shadow tables are in sync: the processor's own flush does, where it has the guest's PCID."""
        if not self.vm.policy.rules.shadow_pcid:
            super().invlpg(la)

    def mov_cr4(self, value: int) -> None:
        vm, old = self.vm, self.vm.state.cr4
        vm.state = replace(vm.state, cr4=value)
        if not (old ^ value) & ~OWNED_CR4:
            return
        self.exit(ExitReason.CR_ACCESS, 4)
        self.load(vm.state.cr3)
        self.entered()

    # ---- to look at -------------------------------------------------------------------------------------------

    def nested_tables(self) -> list[tuple[int, int]]:
        """(gfn, level) of every table at which walks switch, by gfn."""
        return sorted((gfn, level) for gfn, (level, _) in self.vm.tables.nested.items())

    def ept_leaves(self) -> set[tuple[int, int]]:
        """(gfn, level) of what the EPT maps."""
        assert self.second is not None
        return {(gfn, level) for (level, gfn), places in self.second.tables.mapped_by.items() if places}
