"""Policy in Python: take over any VM exit by overriding one method."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, NamedTuple

from fastmmu._arguments import shown
from fastmmu.errors import ConfigError, WrongTypeError
from fastmmu.exits import Action, Exit, ExitReason

if TYPE_CHECKING:
    from fastmmu.machine.machine import Machine

__all__ = ["Mmio", "Policy", "overridden", "policy_name"]


class Mmio(NamedTuple):
    """An access to guest-physical memory that no slot holds, as far as it lies in one page.

    access: "r", "w", "rw" (read-modify-write) or "x" (fetch). size: bytes; 0 where a trace does not say. value: what is
    stored; None for a load, and for a store of which no value is known.
    """

    gpa: int
    access: str
    size: int
    value: int | None


class Policy:
    """Handlers of VM exits. A subclass overrides those that it wants; the rest stay in the kernel layer.

    A handler gets the :class:`~fastmmu.Machine` and the :class:`Exit` and returns an :class:`Action`. What KVM would
    do is ``machine.default()``, so a handler can look, call it, and pass its action on::

        class Count(fastmmu.Policy):
            def __init__(self):
                self.gpas = []

            def on_ept_violation(self, machine, exit):
                self.gpas.append(exit.guest_physical)
                return machine.default()

    The name of a handler is ``on_`` and the exit reason in lower case, for every member of
    :class:`~fastmmu.ExitReason`; those below are the reasons that this machine produces by itself. An exception in a
    handler stops the run and comes out of it unchanged. A method ``on_...`` that is no handler is refused where the
    policy is given.

    Threads: handlers are called in the thread that runs the machine, which holds nothing meanwhile: a handler may wait
    for another thread that uses the VMM. One policy of several machines is called by all of their threads.
    """

    def on_exception_nmi(self, machine: Machine, exit: Exit) -> Action:
        """#PF under shadow paging: qualification = linear address, error_code = its error code. #GP of an instruction
        of CPL 0 in real mode without unrestricted guest: interruption_info tells it apart."""
        return _default(machine)

    def on_external_interrupt(self, machine: Machine, exit: Exit) -> Action:
        """An interrupt arrived while the guest ran."""
        return _default(machine)

    def on_cpuid(self, machine: Machine, exit: Exit) -> Action:
        """CPUID, which always exits; the reason of periodic exits, too."""
        return _default(machine)

    def on_invlpg(self, machine: Machine, exit: Exit) -> Action:
        """INVLPG under shadow paging: qualification = linear address."""
        return _default(machine)

    def on_cr_access(self, machine: Machine, exit: Exit) -> Action:
        """MOV to CR0 and CR4 that changes bits of the VMM; MOV to and from CR3 under shadow paging, and where a guest
        does not page without unrestricted guest; MOV to CR8 without a TPR shadow: operand = the new value."""
        return _default(machine)

    def on_ept_violation(self, machine: Machine, exit: Exit) -> Action:
        """No EPT entry allows the access: guest_physical, qualification (SDM vol. 3, table "Exit Qualification for EPT
        Violations"; ept.md §4.1)."""
        return _default(machine)

    def on_ept_misconfig(self, machine: Machine, exit: Exit) -> Action:
        """An EPT entry that is malformed: guest_physical."""
        return _default(machine)

    def on_npf(self, machine: Machine, exit: Exit) -> Action:
        """A nested page fault, with ``vendor="amd"``, in the place of both: qualification = EXITINFO1, its error code,
        guest_physical = EXITINFO2 (APM vol. 2, 15.25.6; npt.md §4)."""
        return _default(machine)

    def on_pml_full(self, machine: Machine, exit: Exit) -> Action:
        """The processor has no room left in its log of pages written (``Config.pml``); it is read at every exit."""
        return _default(machine)

    def on_interrupt_window(self, machine: Machine, exit: Exit) -> Action:
        """The guest takes interrupts again, and one waits (with ``Config.tpr``, as those below)."""
        return _default(machine)

    def on_tpr_below_threshold(self, machine: Machine, exit: Exit) -> Action:
        """The guest lowered its TPR below the threshold."""
        return _default(machine)

    def on_apic_access(self, machine: Machine, exit: Exit) -> Action:
        """An access to the APIC-access page that is not virtualized: qualification = offset and kind (SDM vol. 3, "Exit
        Qualification for APIC-Access VM Exits ..."; vmx.md §5.1)."""
        return _default(machine)

    def on_apic_write(self, machine: Machine, exit: Exit) -> Action:
        """A write to the virtual-APIC page that the VMM must complete: qualification = offset."""
        return _default(machine)

    def on_virtualized_eoi(self, machine: Machine, exit: Exit) -> Action:
        """An end of interrupt that the VMM wants to see: qualification = vector."""
        return _default(machine)

    def on_vmcall(self, machine: Machine, exit: Exit) -> Action:
        """Patched code polls for an interrupt."""
        return _default(machine)

    def on_rdmsr(self, machine: Machine, exit: Exit) -> Action:
        """RDMSR of EFER or a register of the APIC: operand = number of the MSR."""
        return _default(machine)

    def on_wrmsr(self, machine: Machine, exit: Exit) -> Action:
        """WRMSR of EFER or a register of the APIC: operand = number of the MSR, value = what is written to EFER."""
        return _default(machine)


def _default(machine: Machine) -> Action:
    if not hasattr(machine, "default"):
        raise WrongTypeError(f"a handler gets the Machine whose exit it handles, not a {type(machine).__name__}")
    return machine.default()


_HANDLERS = {f"on_{reason.name.lower()}": int(reason) for reason in ExitReason}


def policy_name(policy: object) -> str:
    """What results say of a policy: its class; "" without one."""
    return "" if policy is None else type(policy).__qualname__


def overridden(policy: object) -> dict[int, str]:
    """Exit reasons that a policy takes over, with the names of its methods.

    :raises WrongTypeError: it is no policy. :raises ConfigError: a method ``on_...`` of no exit reason, which nothing
        would call; or one that cannot be called.
    """
    if policy is None:
        return {}
    if not isinstance(policy, Policy):
        hint = (
            f"give an instance, {policy.__name__}()"
            if isinstance(policy, type)
            else "make its class one of fastmmu.Policy"
        )
        raise WrongTypeError(f"policy={shown(policy)} is no fastmmu.Policy: {hint}")
    own = dict.fromkeys([*vars(policy), *(name for kind in type(policy).__mro__ for name in vars(kind))])
    found = {}
    for name in own:
        if not name.startswith("on_"):
            continue
        handler = getattr(policy, name)
        if (name in _HANDLERS) != callable(handler):
            raise ConfigError(f"{policy_name(policy)}.{name}: {_why_none(name)}")
        if name in _HANDLERS and getattr(handler, "__func__", None) is not getattr(Policy, name, None):
            found[_HANDLERS[name]] = name
    return found


def _why_none(name: str) -> str:
    if name in _HANDLERS:
        return "no function; give a method (self, machine, exit)"
    near = difflib.get_close_matches(name, _HANDLERS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"there is no such VM exit, nothing would call it; {hint}Handlers are on_ and a name of fastmmu.ExitReason"
