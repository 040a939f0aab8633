"""The same machine twice, with the VMM of the kernels and with that of Python, and what must be equal of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastmmu import Config, FastmmuError, Machine

__all__ = ["Pair", "come", "state_of"]


def state_of(machine: Machine) -> dict[str, Any]:
    """All that can be seen of a machine and its VMM."""
    vmcs = machine.vmcs
    if machine.config.mmu == "shadow":
        del vmcs["guest_cr3"]  # of the hardware: `hardware` has what is in force
    return {
        "counters": machine.counters(),
        "stats": machine.vmm.stats(),
        "mmu": machine.vmm.counters(),
        "tables": sorted(machine.vmm.table_pages()),
        "tlb": machine.tlb.counters(),
        "registers": [(n, getattr(machine.state, n)) for n in ("cr0", "cr3", "cr4", "efer", "pdptes")],
        "hardware": machine.hardware,
        "vmcs": vmcs,
    }


def come(do: Callable[[], Any]) -> Any:
    """What a call came to: its value, or its error."""
    try:
        return do()
    except FastmmuError as error:
        return type(error).__name__, str(error)


class Pair:
    """Two machines in lockstep."""

    def __init__(self, make: Callable[[Config], Machine], config: Config) -> None:
        self.config = config
        self.machines = [make(config.replace(vmm=vmm)) for vmm in ("kernel", "python")]
        self.compare("made")

    def do(self, what: str, call: Callable[[Machine], Any]) -> Any:
        """One instruction, or one call of user space, on both."""
        kernel, python = (come(lambda machine=machine: call(machine)) for machine in self.machines)  # type: ignore[misc]
        assert python == kernel, f"{self.config!r}: {what}"
        self.compare(what)
        return kernel

    def compare(self, what: str) -> None:
        kernel, python = map(state_of, self.machines)
        for name, value in kernel.items():
            assert python[name] == value, f"{self.config!r}, {name} after {what}"
