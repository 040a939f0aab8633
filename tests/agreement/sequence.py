"""The recorded order of exits and interrupts, in the form of :mod:`.apic`.

Three details are compared as far as the recording goes: addresses within the guest's code page by their page, for the
binary is not recorded; bits 11:9 of an EPT violation's qualification only where any violation of the recording has
one, for processors without advanced exit information leave them 0; bit 0 of a violation by an access to a guest's
paging structure not where Bochs was the processor, which leaves it 0 although EPT A/D flags make each such access a
read and a write (the deviation ad_qual_bit0 of the vectors' FORMAT.md).
"""

from __future__ import annotations

import re
from typing import Any

from fastmmu.exits import ExitReason, Qualification

from .recorded import KVM_NAMES, Recording

__all__ = ["ours", "recorded", "recorded_interrupts"]

Sequence = list[tuple[str, int]]
ADVANCED = Qualification.USER_PAGE | Qualification.WRITABLE_PAGE | Qualification.NX_PAGE
WORDS = {"MARK": "mark", "INJECT": "out"}


def _entry(text: str) -> tuple[str, int]:
    if found := re.fullmatch(r"inj (?:IRQ|irq) (0x[0-9a-f]+|\d+)", text):
        return "inject", int(found[1], 0)
    if text in WORDS:
        return WORDS[text], 0
    name, _, detail = text.partition(":")
    return name, int(detail, 0) if detail else 0


def recorded(phase: dict[str, Any]) -> Sequence:
    """A recorded phase: (reason by KVM's name, qualification), ("inject", vector), ("out", 0), ("mark", 0)."""
    found: Sequence = []
    for text in phase["exit_sequence"]:
        entry, _, count = text.partition(" *")
        found += [_entry(entry)] * (int(count) if count else 1)
    return found


def recorded_interrupts(phase: dict[str, Any]) -> Sequence | list[tuple[int, int]]:
    """(vector, what the guest noted last)."""
    return [(int(vector, 0), int(step, 0)) for vector, step in phase["guest_irq_log"]]


def _advanced(recording: Recording, configuration: str) -> bool:
    phases = recording.results[configuration].values()
    exits = [entry for phase in phases for entry in recorded(phase)]
    return any(detail & ADVANCED for name, detail in exits if name == ExitReason.EPT_VIOLATION.name)


def ours(sequence: Sequence, recording: Recording, configuration: str) -> Sequence:
    """What this machine did, in the recording's names and with as much detail."""
    keep = ~0 if _advanced(recording, configuration) else ~int(ADVANCED)

    def qualification(detail: int) -> int:
        structure = detail & Qualification.GLA_VALID and not detail & Qualification.TRANSLATED
        if recording.emulator == "bochs" and structure and detail & Qualification.WRITE:
            detail &= ~int(Qualification.READ)
        return detail & keep

    return [
        (KVM_NAMES.get(name, name), qualification(detail) if name == ExitReason.EPT_VIOLATION.name else detail)
        for name, detail in sequence
    ]


def alike(one: Sequence, other: Sequence, code: int) -> bool:
    """Equal but for addresses within the code page."""

    def plain(entry: tuple[str, int]) -> tuple[str, int]:
        name, detail = entry
        in_code = name == ExitReason.EXCEPTION_NMI.name and detail >> 12 == code >> 12
        return (name, detail & ~0xFFF) if in_code else entry

    return [plain(entry) for entry in one] == [plain(entry) for entry in other]
