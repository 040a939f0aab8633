"""A bare guest whose tables lead to its APIC's page in several ways, and a handler that notes what exits there."""

from __future__ import annotations

from typing import Any

from fastmmu import Action, Config, Exit, GuestState, Machine, Policy

__all__ = ["BEHIND", "LARGE", "PAGE", "SVR", "VIRTUAL", "Seen", "bare", "exits"]

SVR = 0xF0
PAGE = 0xC000_0000  # linear: the APIC's page, between two of memory
BEHIND = PAGE + 0x1000
LARGE = 0x8000_0000  # 2 MB from gpa FEE0_0000H on
VIRTUAL: list[dict[str, Any]] = [
    {"mmu": mmu, "tpr": tpr} for mmu in ("ept", "shadow") for tpr in ("flexpriority", "apicv")
]


def bare(policy: Policy | None = None, **config: Any) -> Machine:
    state = GuestState(cr3=0x1000, cr4=0xA0, maxphyaddr=46)
    m = Machine(Config(memory="64M", **config), guest_kernel=False, state=state, policy=policy)
    tables = {
        0x1000: 0x2003,
        0x2000: 0x3003,
        0x3000: 0x83,
        0x2010: 0x6003,
        0x2018: 0x4003,
        0x6000 + 8 * 511: 0x7003,
        0x7000 + 8 * 511: 0x9003,
        0x4000: 0x5003,
        0x5000: 0xFEE0_001B,
        0x5008: 0x8003,
        0x6000: 0xFEE0_009B,
    }
    for address, entry in tables.items():
        m.guest_memory.u64[address >> 3] = entry
    m.apic.address = PAGE
    return m


def exits(m: Machine, name: str) -> int:
    found: int = m.counters()["exits_by_reason"].get(name, 0)
    return found


class Seen(Policy):
    """Notes the exits that the page causes, and leaves everything as it is."""

    def __init__(self, answer: Action = Action.EMULATED) -> None:
        self.exits: list[int] = []  # reason << 16 | qualification
        self.answer = answer

    def on_apic_access(self, machine: Machine, exit: Exit) -> Action:
        self.exits.append(exit.reason << 16 | exit.qualification)
        return self.answer

    def on_apic_write(self, machine: Machine, exit: Exit) -> Action:
        self.exits.append(exit.reason << 16 | exit.qualification)
        return self.answer
