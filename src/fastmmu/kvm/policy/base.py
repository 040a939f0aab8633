"""What the rules of this package have in common: the machine that they are for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastmmu.kvm.port import VirtualMachine


class Base:
    """Rules of a VMM, on its virtual machine."""

    def __init__(self, vm: VirtualMachine) -> None:
        self.vm = vm
        self.mmu = vm.mmu
