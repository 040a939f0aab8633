"""What stops a machine whose VMM is in Python: an error that says why, after which it can go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmmu import (
    Action,
    Config,
    EventError,
    Exit,
    Host,
    Kvm,
    PolicyError,
    StateError,
)
from fastmmu.exits import ExitReason
from fastmmu.vmx.fields import Field
from tests.support import hostile_exits, hostile_tables
from tests.support.apic_guest import PAGE, bare
from tests.support.flat_guest import flat_vmm

MMUS = ("ept", "shadow")
SVR, EOI = 0xF0, 0xB0


class Switch(Kvm):
    """Answers as it is told to."""

    answer: Any = None

    def handle(self, vcpu: Any) -> int:
        answer: int = super().handle(vcpu) if self.answer is None else self.answer
        return answer


# ---- a handler that makes no progress ----------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", MMUS)
def test_a_handler_that_only_retries(mmu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m = flat_vmm(Switch, mmu)
    monkeypatch.setattr(Switch, "answer", Action.RETRY)
    name = "ept_violation" if mmu == "ept" else "exception_nmi"
    for _ in range(2):
        before = m.counters()["vm_exits"]
        with pytest.raises(PolicyError, match=rf"the access to 0x5000 exits again and again \({name}\); its handler"):
            m.store(0x5000, 7)
        assert m.counters()["vm_exits"] - before == 65
    monkeypatch.setattr(Switch, "answer", None)
    m.store(0x5000, 7)
    assert m.load(0x5000).value == 7


class Window(Kvm):
    """Does not end the interrupt window, as long as `stuck`."""

    stuck = False

    def handle(self, vcpu: Any) -> int:
        action = super().handle(vcpu)
        if self.stuck:
            vcpu.apic.interrupt_window = True
        return action


def test_an_exit_that_follows_each_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    m = flat_vmm(Window, "ept", tpr="flexpriority")
    monkeypatch.setattr(Window, "stuck", True)
    with pytest.raises(PolicyError, match="interrupt_window follows each VM entry; its handler must take the cause"):
        m.exit_instruction(10)
    monkeypatch.setattr(Window, "stuck", False)
    m.exit_instruction(10)
    assert m.load(0x5000).gpa == 0x5000


@pytest.mark.parametrize("answer", [3, 99, -1, None.__class__, "retry", 1.0])
def test_what_is_no_action_is_refused(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    m = flat_vmm(Switch, "ept")
    monkeypatch.setattr(Switch, "answer", answer)
    with pytest.raises(PolicyError, match=r"Switch\.handle\(\) returned .* at cpuid; return a fastmmu\.Action"):
        m.exit_instruction(10)
    monkeypatch.setattr(Switch, "answer", None)
    m.exit_instruction(10)


# ---- an interrupt whose handler does not reach its APIC ----------------------------------------------------------


class Asking(Kvm):
    """Injects an interrupt at each CPUID."""

    def default(self, vcpu: Any, exit: Exit) -> int:
        if exit.reason == ExitReason.CPUID:
            vcpu.apic.inject(0x51)
            return Action.EMULATED
        return super().default(vcpu, exit)


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("vmm", ["kernel", "python", Asking])
def test_the_handler_of_an_interrupt_meets_no_page(vmm: Any, mmu: str) -> None:
    m = bare(vmm=vmm, mmu=mmu, tpr="flexpriority")
    m.apic.write(SVR, 0x1FF)
    m.apic.address = 0x5000_0000
    call, argument = (m.exit_instruction, 10) if vmm is Asking else (m.apic.interrupt, 0x51)
    with pytest.raises(EventError, match=r"#PF at 0x500000b0.*does not map its APIC there; map guest-physical"):
        call(argument)
    assert [each.vector for each in m.apic.deliveries] == [0x51]
    m.apic.address = PAGE
    m.apic.write(EOI, 0)
    m.apic.interrupt(0x61)
    assert [each.vector for each in m.apic.deliveries] == [0x51, 0x61]


def test_a_handler_that_returns_later_meets_no_page() -> None:
    m = bare(mmu="ept", tpr="flexpriority", handler_length=3)
    m.apic.write(SVR, 0x1FF)
    m.apic.interrupt(0x51)
    m.apic.address = 0x5000_0000
    with pytest.raises((EventError, StateError), match=r"#PF at 0x500000b0.*does not map its APIC there"):
        m.apic.wait(10)


# ---- a VM entry that fails ---------------------------------------------------------------------------------------

BAD_CR4 = 1 << 40


class Breaking(Kvm):
    """Writes CR4 of the guest where it is told to: at CPUID, or when user space reads a dirty log."""

    cr4: int | None = None

    def tell(self, vcpu: Any) -> None:
        if Breaking.cr4 is not None:
            vcpu.vmwrite(Field.GUEST_CR4, Breaking.cr4)

    def default(self, vcpu: Any, exit: Exit) -> int:
        action = super().default(vcpu, exit)
        if exit.reason == ExitReason.CPUID:
            self.tell(vcpu)
        return action

    def get_dirty_log(self, log: Any, dirty: Any) -> Any:
        self.tell(self.vm.vcpus[0])
        return super().get_dirty_log(log, dirty)


def test_an_entry_that_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    m = flat_vmm(Breaking, "ept")
    m.store(0x5000, 7)
    m.vmm.start_dirty_log(0)
    good = m.vmcs["guest_cr4"]
    monkeypatch.setattr(Breaking, "cr4", BAD_CR4)
    errors = []
    calls = [(m.exit_instruction, 10), (m.load, 0x5000), (m.exit_instruction, 10), (m.mov_cr3, 0x1000)]
    exits = m.counters()["vm_exits"]
    for call, argument in calls:
        with pytest.raises(StateError, match="VM entry failed with exit reason 0x80000021") as caught:
            call(argument)
        errors.append(str(caught.value))
    assert len(set(errors)) == 1
    assert m.counters()["vm_exits"] == exits + 1  # nothing ran
    assert m.vmcs["guest_cr4"] == BAD_CR4
    monkeypatch.setattr(Breaking, "cr4", good)
    m.vmm.dirty_log(0)
    assert m.load(0x5000).value == 7
    m.exit_instruction(10)
    assert m.counters()["vm_exits"] >= exits + 2


def test_a_host_enters_again_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host([(Config(memory="64M", vmm=Breaking, mmu="ept"), 2)], cpus=2)
    m = host.place(0, 0)
    reads = np.zeros(1, np.uint8), np.full(1, 8, np.uint8), np.full(1, 0x40_0000, np.uint64)
    host.run(0, 0, *reads)
    good = m.vmcs["guest_cr4"]
    monkeypatch.setattr(Breaking, "cr4", BAD_CR4)
    cpuid = np.full(1, 19, np.uint8), np.zeros(1, np.uint8), np.full(1, 10, np.uint64)
    m.vmm.start_dirty_log(0)
    with pytest.raises(StateError, match="VM entry failed"):
        host.run(0, 0, *cpuid)
    for cpu in (0, 1, 1):
        with pytest.raises(StateError, match="VM entry failed"):
            host.run(0, cpu, *reads)
    assert host.run(1, 0, *reads) == 1
    monkeypatch.setattr(Breaking, "cr4", good)
    m.vmm.dirty_log(0)
    assert host.run(0, 1, *reads) == 1


# ---- calls from inside -------------------------------------------------------------------------------------------


def test_no_call_from_inside_an_exit_ends_the_process() -> None:
    """Every public method of what a handler gets, with hostile values, in forked children."""
    wrong, outcomes, called = hostile_exits.run(range(24))
    assert not wrong, "\n".join(wrong)
    assert outcomes["PolicyError"] > 500
    names = {f"{kind.__name__}.{name}" for kind, name in hostile_exits.METHODS}
    assert len(names - called.keys()) < 25, names - called.keys()


def test_garbage_in_its_tables_ends_no_process() -> None:
    """Entries written past the VMM, whatever they are: its lists and walks go by what it made itself."""
    wrong, outcomes, called = hostile_tables.run(range(24), hostile_tables.one_round)
    assert not wrong, "\n".join(wrong)
    assert sum(outcomes.values()) > 500
    assert min(called[name] for name in ("load", "store", "dirty_log", "swap_out", "range", "recover_nx")) > 50


def root_lost(vcpu: Any) -> None:
    vcpu.roots.zap_all()


def root_forgotten(vcpu: Any) -> None:
    vcpu.roots.forget()


@pytest.mark.parametrize("lose", [root_lost, root_forgotten])
@pytest.mark.parametrize("mmu", MMUS)
def test_a_handler_leaves_a_root(mmu: str, lose: Callable[[Any], None]) -> None:
    """Else the processor walks a page that is free."""

    class Losing(Kvm):
        on = False

        def default(self, vcpu: Any, exit: Exit) -> int:
            if exit.reason != ExitReason.CPUID:
                return super().default(vcpu, exit)
            if Losing.on:
                lose(vcpu)
            return Action.EMULATED

    m = flat_vmm(Losing, mmu)
    m.store(0x5000, 7)
    Losing.on = True
    with pytest.raises(PolicyError, match=r"Losing\.handle\(\) at cpuid left no root; .* vcpu\.roots\.load"):
        m.exit_instruction(10)
    Losing.on = False
    m.exit_instruction(10)
    assert m.load(0x5000).value == 7


@pytest.mark.parametrize("mmu", MMUS)
def test_the_processor_is_not_led_to_other_tables(mmu: str) -> None:
    """What it walks and what it writes by itself: a guest would write to the VMM's tables there."""
    seen: list[str] = []

    class Leading(Kvm):
        def default(self, vcpu: Any, exit: Exit) -> int:
            field = Field.EPTP if mmu == "ept" else Field.GUEST_CR3
            value = vcpu.vmread(field)
            guest = self.mmu.slot(0).hpa(3)
            with pytest.raises(StateError, match=r"a root of|vcpu\.roots\.address"):
                vcpu.vmwrite(field, guest | value & 0xFFF)
            with pytest.raises(StateError, match="tables stand"):
                vcpu.vmwrite(Field.PML_ADDRESS, vcpu.roots.address)
            with pytest.raises(StateError, match="tables stand"):
                vcpu.apic.virtual_apic_address = vcpu.roots.address
            vcpu.vmwrite(field, value)
            if mmu == "shadow":
                off = vcpu.arch.copy()
                off.cr0 &= ~(1 << 31)
                with pytest.raises(PolicyError, match="long mode or of PAE"):
                    vcpu.run_on(off)
            seen.append(mmu)
            return Action.EMULATED

    m = flat_vmm(Leading, mmu, tpr="flexpriority")
    m.exit_instruction(10)
    assert seen == [mmu]
