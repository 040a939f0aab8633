"""What methods of a VMM in Python answer: a #GP for the guest, nothing at all, a vCPU that did not enter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmmu import Action, Config, Exit, GuestState, Host, Kvm, Machine, MemorySlot, Op, PolicyError, StateError
from fastmmu.exits import ExitReason
from fastmmu.kvm.policy.requests import Mode
from tests.support.apic_guest import bare
from tests.support.flat_guest import flat_vmm
from tests.support.hammer import forked
from tests.support.host_events import few

MMUS = ("ept", "shadow")
SVR = 0xF0


class Injects(Kvm):
    """Answers every exit of a reason with #GP(0)."""

    reason = ExitReason.CPUID

    def default(self, vcpu: Any, exit: Exit) -> int:
        if exit.reason == self.reason:
            return Action.INJECT_GENERAL_PROTECTION
        return super().default(vcpu, exit)


INJECTED: dict[str, tuple[str, ExitReason, Callable[[Machine], object], type[Exception], str]] = {
    "a program's access": (
        "ept", ExitReason.EPT_VIOLATION, lambda m: m.run(*few(2)), PolicyError,
        r"event 0: the handler of ept_violation injected #GP\(0\) into the access to 0x10000000, which nothing",
    ),
    "its second page": (
        "ept", ExitReason.EPT_VIOLATION,
        lambda m: m.run(np.array([Op.WRITE], np.uint8), np.array([8], np.uint8), np.array([0x1000_0FFC], np.uint64)),
        PolicyError, r"injected #GP\(0\) into the access to 0x1000(0ffc|1000),",
    ),
    "the guest kernel's": (
        "ept", ExitReason.EPT_VIOLATION, lambda m: m.run(*few(1, 0x7000_0000)), PolicyError,
        r"event 0: the handler of ept_violation injected #GP\(0\), which nothing in the guest kernel answers",
    ),
    "under shadow paging": (
        "shadow", ExitReason.EXCEPTION_NMI, lambda m: m.run(*few(1, 0x7000_0000)), PolicyError,
        r"the handler of exception_nmi injected #GP\(0\) into the access to 0x70000000,",
    ),
    "the kernel's, which unmaps": (
        "ept", ExitReason.EPT_VIOLATION,
        lambda m: (m.vmm.start_dirty_log(0),
                   m.run(np.array([Op.UNMAP], np.uint8), np.array([8], np.uint8), np.array([0x1000_0000], np.uint64))),
        PolicyError, r"event 0: the handler of ept_violation injected #GP\(0\), which nothing in the guest kernel",
    ),
    "the kernel's MOV to CR3": (
        "shadow", ExitReason.CR_ACCESS,
        lambda m: m.run(np.array([Op.SWITCH], np.uint8), np.array([8], np.uint8), np.array([5], np.uint64)),
        PolicyError, r"the handler of cr_access injected #GP\(0\), which nothing in the guest kernel answers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", INJECTED)
def test_a_general_protection_that_a_handler_injected(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said who injected it; the machine can go on."""
    mmu, reason, call, kind, says = INJECTED[what]
    m = Machine(Config(memory="64M", vmm=Injects, mmu=mmu))
    m.run(*few(2))
    if "kernel" not in what:
        m.vmm.start_dirty_log(0)
    monkeypatch.setattr(Injects, "reason", reason)
    for _ in range(2):
        with pytest.raises(kind, match=says):
            call(m)
    monkeypatch.setattr(Injects, "reason", ExitReason.CPUID)
    call(m)


@pytest.mark.parametrize("mmu", MMUS)
def test_a_general_protection_injected_into_a_bare_guest(mmu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m = flat_vmm(Injects, mmu)
    monkeypatch.setattr(Injects, "reason", ExitReason.EPT_VIOLATION if mmu == "ept" else ExitReason.EXCEPTION_NMI)
    with pytest.raises(StateError, match=r"the access to 0x5000: #GP\(0\), a policy injected it"):
        m.load(0x5000)
    monkeypatch.setattr(Injects, "reason", ExitReason.CPUID)
    m.store(0x5000, 7)
    assert m.load(0x5000).value == 7


@pytest.mark.parametrize(("way", "reason"), [("trap", "EPT_VIOLATION"), ("flexpriority", "APIC_ACCESS")])
def test_a_general_protection_injected_into_an_access_to_the_apic(
    way: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = bare(mmu="ept", tpr=way, vmm=Injects, tpr_shadow=way != "trap")
    m.apic.read(SVR)
    monkeypatch.setattr(Injects, "reason", ExitReason[reason])
    if way != "trap":
        with pytest.raises(StateError, match="the handler of the exit injected it"):
            m.apic.read(0x320)
    monkeypatch.setattr(Injects, "reason", ExitReason.CR_ACCESS)
    if way == "trap":
        with pytest.raises(StateError, match="the handler of the exit injected it"):
            m.apic.write_cr8(3)
    monkeypatch.setattr(Injects, "reason", ExitReason.CPUID)
    m.apic.write_cr8(3)
    assert m.apic.read_cr8() == 3


def test_a_vcpu_that_did_not_enter_and_ends_is_on_no_cpu() -> None:
    """Its VMM says that it is in guest mode, but did not enter: the host knows where it put it."""

    class Says(Kvm):
        def vcpu_enter_guest(self, vcpu: Any) -> None:
            vcpu.mode = Mode.IN_GUEST_MODE

    def run() -> None:
        config = Config(memory="64M", mmu="ept", vpid=True, vmm=Says)
        for first in (0, 1):
            host = Host([(config, 2), (config.replace(vmm="kernel"), 1)], cpus=2)
            with pytest.raises(PolicyError, match="did not enter the guest on CPU 1"):
                host.place(first, 1)
            host.remove(first)
            host.place(2, 1)
            with pytest.raises(PolicyError, match="did not enter"):
                host.place(1 - first, 1)
            host.remove(host.machines[0])
            host.run(2, 1, *few())
            assert host.totals()["vpids"] == 1

    forked(run)


@pytest.mark.parametrize(("mmu", "name"), [("shadow", "load_mmu"), ("ept", "vcpu_reset"), ("shadow", "vcpu_reset")])
def test_a_method_that_does_not_say_what_came_of_it(mmu: str, name: str) -> None:
    forgets = type("Forgets", (Kvm,), {name: lambda self, vcpu: None})
    state = GuestState(cr0=0x80000011, cr3=0x1000, cr4=0x20, efer=0, maxphyaddr=46)
    with pytest.raises(PolicyError, match=rf"Forgets\.{name}\(\) returned None and stopped nothing: return True"):
        Machine(Config(memory="64M", mmu=mmu, vmm=forgets), guest_kernel=False, state=state).load(0)


def test_a_zap_of_all_that_does_not_say_what_came_of_it() -> None:
    forgets = type("Forgets", (Kvm,), {"zap_all": lambda self, vcpu: None})
    machine = Machine(Config(memory="64M", mmu="ept", vmm=forgets), slots=[MemorySlot(0x1_0000_0000, 1 << 16)])
    with pytest.raises(PolicyError, match=r"Forgets\.zap_all\(\) returned None: return True"):
        machine.vmm.delete_slot(1)
