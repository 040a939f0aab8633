"""Ways to spoil an entry of a random scene, by name: `change(world, entry, level, host address)` is the new one."""

from __future__ import annotations

from typing import Any

__all__ = ["EPT_DEFECTS", "FRAMES", "GUEST_DEFECTS", "HIGH_FRAME", "NPT_DEFECTS"]

FRAMES = 96  # 4 KiB frames of host memory
HIGH_FRAME = 0xABCDE  # a frame outside memory and below every MAXPHYADDR used here
FRAME = 0xF_FFFF_FFFF_F000


def _reserved_address_bit(w: Any, entry: int) -> int:
    m = w.state.maxphyaddr
    return entry | 1 << w.pick((m, 51)) if m < 52 else entry | 1 << 63


def _repoint(w: Any, entry: int, frame: int) -> int:
    return entry & ~FRAME | frame << 12


GUEST_DEFECTS: dict[str, Any] = {
    "not present": lambda w, e, level, hpa: e & ~1,
    "all zero": lambda w, e, level, hpa: 0,
    "reserved address bit": lambda w, e, level, hpa: _reserved_address_bit(w, e),
    "bit 63": lambda w, e, level, hpa: e ^ 1 << 63,
    "bit 62": lambda w, e, level, hpa: e ^ 1 << 62,
    "bit 7": lambda w, e, level, hpa: e ^ 1 << 7,
    "bit 13": lambda w, e, level, hpa: e ^ 1 << 13,
    "bit 20": lambda w, e, level, hpa: e ^ 1 << 20,
    "bit 21": lambda w, e, level, hpa: e ^ 1 << 21,
    "bit 12": lambda w, e, level, hpa: e ^ 1 << 12,
    "points outside memory": lambda w, e, level, hpa: _repoint(w, e, HIGH_FRAME),
    "points at the last frame": lambda w, e, level, hpa: _repoint(w, e, FRAMES - 1),
    "points just behind memory": lambda w, e, level, hpa: _repoint(w, e, FRAMES),
    "points at its own table": lambda w, e, level, hpa: _repoint(w, e, w.gpa_of.get(hpa & ~0xFFF, hpa) >> 12),
    "points at another table": lambda w, e, level, hpa: _repoint(w, e, w.pick(range(w.next_frame))),
}  # fmt: skip

EPT_DEFECTS: dict[str, Any] = {
    "not present": lambda w, e, level, hpa: e & ~0x407,
    "not present, suppress #VE": lambda w, e, level, hpa: e & ~0x407 | 1 << 63,
    "only XU": lambda w, e, level, hpa: e & ~7 | 0x400,
    "write only": lambda w, e, level, hpa: e & ~7 | 2,
    "write and execute": lambda w, e, level, hpa: e & ~7 | 6,
    "execute only": lambda w, e, level, hpa: e & ~7 | 4,
    "read only": lambda w, e, level, hpa: e & ~7 | 1,
    "reserved address bit": lambda w, e, level, hpa: _reserved_address_bit(w, e),
    "bit 3": lambda w, e, level, hpa: e ^ 1 << 3,
    "bit 4": lambda w, e, level, hpa: e ^ 1 << 4,
    "bit 6": lambda w, e, level, hpa: e ^ 1 << 6,
    "bit 7": lambda w, e, level, hpa: e ^ 1 << 7,
    "memory type 7": lambda w, e, level, hpa: e | 0x38,
    "bit 12": lambda w, e, level, hpa: e ^ 1 << 12,
    "bit 29": lambda w, e, level, hpa: e ^ 1 << 29,
    "points outside memory": lambda w, e, level, hpa: _repoint(w, e, HIGH_FRAME),
    "points at the last frame": lambda w, e, level, hpa: _repoint(w, e, FRAMES - 1),
    "points just behind memory": lambda w, e, level, hpa: _repoint(w, e, FRAMES),
    "points at its own table": lambda w, e, level, hpa: _repoint(w, e, hpa >> 12),
    "points at another table": lambda w, e, level, hpa: _repoint(w, e, w.pick(range(w.next_frame))),
}


NPT_DEFECTS: dict[str, Any] = {
    **{name: GUEST_DEFECTS[name] for name in ("not present", "all zero", "reserved address bit", "bit 63", "bit 7")},
    "not user's": lambda w, e, level, hpa: e & ~4,
    "read only": lambda w, e, level, hpa: e & ~2,
    "bit 8": lambda w, e, level, hpa: e ^ 1 << 8,
    "bit 12": lambda w, e, level, hpa: e ^ 1 << 12,
    "bit 13": lambda w, e, level, hpa: e ^ 1 << 13,
    "bit 29": lambda w, e, level, hpa: e ^ 1 << 29,
    **{name: EPT_DEFECTS[name] for name in EPT_DEFECTS if name.startswith("points")},
}
