"""Where an interprocessor interrupt goes: a table of the SDM's rules, read from the destination to the processors.

SDM volume 3, "Determining IPI Destination" and "Local APIC ID and logical destination in x2APIC mode". A destination
reaches a processor by the mode of that one; the sender's mode says how wide it is.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DESTINATIONS", "IDS", "SHORTHANDS", "Receiver", "reached"]

IDS = (0, 1, 7, 8, 15, 16, 17, 31, 32, 200, 254, 255)
"""Some of clusters 0, 1, 2, 12 and 15, the last of each, and FFH itself."""

DESTINATIONS = (
    *(0, 1, 2, 3, 7, 8, 0x0F, 0x10, 0x1F, 0x20, 0x80, 0xC8, 0xF0, 0xF1, 0xFE, 0xFF, 0x100, 0x101, 0x180, 0x1FF),
    *(0xFFFF, 0x1_0000, 0x1_0001, 0x1_0003, 0x1_8000, 0x1_00FF, 0x1_FFFF, 0x2_0001, 0x3_0001, 0xC_0100, 0xF_0001),
    *(0xF_4000, 0xF_C000, 0xF_FFFF, 0x10_0001, 0xFF_FFFF, 0xFF00_0000, 0xFFFF_0000, 0xFFFF_FF00, 0xFFFF_FFFE),
    0xFFFF_FFFF,
)
SHORTHANDS = ("none", "self", "all", "all but self")


@dataclass(frozen=True)
class Receiver:
    """mode: "disabled", "xAPIC flat", "xAPIC cluster", "xAPIC other" (a model that is none) or "x2APIC".

    `logical`: the logical id that software gave it in xAPIC mode; `physical`: the id there if software changed it.
    """

    id: int
    mode: str
    logical: int = 0
    physical: int | None = None


def reached(receivers: list[Receiver], sender: int, shorthand: int, destination: int, *, logical: bool) -> set[int]:
    """Ids of those that an interrupt reaches."""
    there = [each for each in receivers if each.mode != "disabled"]
    everyone = {each.id for each in there}
    if shorthand:
        me = {sender} & everyone
        return {"self": me, "all": everyone, "all but self": everyone - me}[SHORTHANDS[shorthand]]
    x2apic = {each.id for each in there if each.mode == "x2APIC"}
    xapic = [each for each in there if each.mode != "x2APIC"]
    found: set[int] = set()
    # x2APIC mode: all ones, an id of 32 bits, or 16 members of one cluster
    if destination == 0xFFFF_FFFF:
        found |= x2apic
    elif logical:
        cluster, members = destination >> 16, destination & 0xFFFF
        found |= x2apic & {16 * cluster + member for member in range(16) if members >> member & 1}
    else:
        found |= x2apic & {destination}
    # xAPIC mode: eight ones, an id of 8 bits, 8 members of the flat model, or 4 of one cluster
    if destination == 0xFF:
        found |= {each.id for each in xapic}
    elif not logical:
        found |= {each.id for each in xapic if destination == (each.id if each.physical is None else each.physical)}
    else:
        flat = {bit for bit in range(8) if destination >> bit & 1}
        for each in xapic:
            mine = {bit for bit in range(8) if each.logical >> bit & 1}
            if each.mode == "xAPIC flat" and flat & mine:
                found.add(each.id)
            clustered = destination < 0x100 and destination // 16 == each.logical // 16
            if each.mode == "xAPIC cluster" and clustered and {bit for bit in flat & mine if bit < 4}:
                found.add(each.id)
    return found
