"""The recorded order of exits and interrupts, in the form of :mod:`.apic`.

Details are compared as far as the recording goes: addresses within the guest's code page by their page, for the binary
is not recorded; qualifications of EPT violations as in :mod:`.exits`.
"""

from __future__ import annotations

import re
from typing import Any

from fastmmu.exits import ExitReason, Qualification

from .exits import GENERAL_REGISTER, RESERVED, advanced, of_violation
from .recorded import KVM_NAMES, Recording

__all__ = ["ours", "recorded", "recorded_interrupts"]

Sequence = list[tuple[str, int]]
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


def ours(sequence: Sequence, recording: Recording, configuration: str) -> Sequence:
    """What this machine did, in the recording's names and with as much detail."""
    has_advanced = advanced(recording, configuration)

    def told(name: str, detail: int) -> int:
        if name == ExitReason.EPT_VIOLATION.name:
            return of_violation(detail, recording, has_advanced)
        if name == ExitReason.CR_ACCESS.name and "decodeassists" in recording.lacks:
            return detail & ~GENERAL_REGISTER
        return detail

    return [
        _nested(detail) if name == ExitReason.NPF.name else (KVM_NAMES.get(name, name), told(name, detail))
        for name, detail in sequence
    ]


def _nested(code: int) -> tuple[str, int]:
    """A nested page fault of AMD's as the recorder has it in the sequence, in Intel's words; its error codes themselves
    are compared by :mod:`.exits`."""
    if code & RESERVED:
        return ExitReason.EPT_MISCONFIG.name, 0
    write, fetch = code >> 1 & 1, code >> 4 & 1
    final = int(Qualification.TRANSLATED) if code >> 32 & 1 else 0
    kind = Qualification.WRITE if write else Qualification.FETCH if fetch else Qualification.READ
    return ExitReason.EPT_VIOLATION.name, int(kind) | int(Qualification.GLA_VALID) | final


def alike(one: Sequence, other: Sequence, code: int) -> bool:
    """Equal but for addresses within the code page."""

    def plain(entry: tuple[str, int]) -> tuple[str, int]:
        name, detail = entry
        in_code = name == ExitReason.EXCEPTION_NMI.name and detail >> 12 == code >> 12
        return (name, detail & ~0xFFF) if in_code else entry

    return [plain(entry) for entry in one] == [plain(entry) for entry in other]
