"""Values that no call expects: numbers about every width, other types, arrays of every wrong kind, hostile objects.

An object whose own method raises does so with `OwnError`: where it comes out of a call, it is the object's own word.
"""

from __future__ import annotations

import decimal
import enum
import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

import fastmmu

WIDTHS = (1, 8, 12, 16, 32, 36, 46, 48, 52, 57, 63, 64, 65, 128, 256)


class OwnError(Exception):
    """What a hostile object raises."""


class Raising:
    """Every question is answered by `OwnError`."""

    def __index__(self) -> int:
        raise OwnError("__index__")

    def __len__(self) -> int:
        raise OwnError("__len__")

    def __iter__(self) -> Any:
        raise OwnError("__iter__")

    def __getitem__(self, key: object) -> Any:
        raise OwnError("__getitem__")

    def __bool__(self) -> bool:
        raise OwnError("__bool__")

    def __fspath__(self) -> str:
        raise OwnError("__fspath__")


class Index:
    """A whole number that is no int."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __index__(self) -> Any:
        return self.value


class LyingLength:
    """A sequence that says it is as long as none can be, and has nothing."""

    def __len__(self) -> int:
        return (1 << 63) - 1

    def __getitem__(self, key: object) -> Any:
        raise IndexError(key)


class OddInt(int):
    """An int whose methods lie."""

    def __index__(self) -> int:
        return -1

    def __int__(self) -> int:
        return -1

    def __repr__(self) -> str:
        raise OwnError("__repr__")


class OddText(str):
    """A str that equals everything."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash("r")

    def __repr__(self) -> str:
        raise OwnError("__repr__")


class Number(enum.IntEnum):
    FEW = 3
    MANY = 1 << 60


class Word(enum.Enum):
    R = "r"


def misaligned(n: int, dtype: str) -> np.ndarray[Any, Any]:
    size = np.dtype(dtype).itemsize
    return np.zeros(n * size + 1, np.uint8)[1 : 1 + n * size].view(dtype)


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


slot: Callable[..., fastmmu.MemorySlot] = fastmmu.MemorySlot


def integers() -> list[Any]:
    found: set[int] = {
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        10,
        13,
        100,
        255,
        511,
        512,
        4095,
        4096,
        4097,
        65534,
        0x1E,
        0x101E,
        0x8000,
    }
    for width in WIDTHS:
        found |= {(1 << width) - 1, 1 << width, (1 << width) + 1, -(1 << width), (1 << width) - 4096}
    found |= {0xFFFF_8000_0000_0000, 0x0000_8000_0000_0000, 1 << 63 | 1 << 12, -1, -2, -4096, 10**5000, -(10**5000)}
    return sorted(found)


def of_other_types() -> list[Any]:
    return [
        None, True, False, np.True_, np.False_, 0.0, 1.0, -1.5, 1e300, float("nan"), float("inf"), -float("inf"), 1j,
        np.float64(1.0), np.float32("nan"), np.int64(-1), np.int8(5), np.uint64((1 << 64) - 1), np.uint8(255),
        decimal.Decimal(1), Number.FEW, Number.MANY, Word.R, fastmmu.Op.READ, fastmmu.Fault.PAGE_FAULT,
        OddInt(5), OddInt(1 << 200), OddText("r"), OddText("4k"), Index(1), Index(-1), Index(1 << 80), Index("x"),
        "", "r", "w", "rw", "x", "q", "4k", "2m", "8k", "64G", "1", "-1", "ept", "shadow", "lru", "skylake", "64/4",
        "0/0", "9" * 5000, "\0", "\udc80", "é" * 300, "none", "csv", b"", b"r", b"\0" * 24, bytearray(8),
        memoryview(b"x" * 16),
        (), (1,), (1, 2), (None,) * 4, (0, 0, 0, 0), (1 << 64,) * 4, [], [0], [1, 2, 3], [-1], [1 << 64], ["a"], [[1]],
        [1.5], [None], {}, {"cr0": 1}, {0: 1}, set(), {1, 2}, range(3), range(1 << 40), iter([1]), itertools.count(),
        object(), object, len, lambda *a, **k: 0, ..., NotImplemented, pathlib.Path("absent"), Raising(), Raising,
        LyingLength(), fastmmu.GuestState(), fastmmu.Mtrrs(), fastmmu.Config(), fastmmu.CostModel.load(),
        fastmmu.MemorySlot(0, 0), slot("a", None, 3, 4, 5, 6), slot(1 << 60, 4096), slot(0x1000_0000, 4096, host="8k"),
        fastmmu.Policy(), fastmmu.Device(), ValueError("x"),
    ]  # fmt: skip


def arrays() -> list[Any]:
    words = np.arange(8, dtype=np.uint64) << np.uint64(12)
    return [
        words, words.astype(np.uint8), words.astype(np.int64), words.astype(np.float64), words.astype(">u8"),
        words.astype(object), words.astype(np.bool_), words.astype(np.uint32), words[::2], words[::-1],
        words.reshape(2, 4), words.reshape(2, 4).T, read_only(words.copy()), np.empty(0, np.uint64),
        np.empty(0, np.uint8), np.empty((0, 3), np.uint64), np.array(5, np.uint64), np.array(5.0), misaligned(8, "<u8"),
        misaligned(3, "<u2"), np.full(8, (1 << 64) - 1, np.uint64), np.full(8, 1 << 57, np.uint64),
        np.full(8, 1 << 63, np.uint64),
        np.full(8, -1, np.int64), np.zeros(4096, np.uint8), read_only(np.zeros(4096, np.uint8)), np.zeros(24, np.uint8),
        np.full(48, 255, np.uint8), np.array([0, 1, 2, 3, 16, 17, 18, 19], np.uint8), np.array([255] * 8, np.uint8),
        np.array([19, 20, 20, 21, 24, 28, 29, 30], np.uint8), np.array(["a"]), np.array([None]), np.array([1 << 70]),
        np.zeros(3, [("a", "u8")]), np.ma.masked_array([1, 2], [0, 1]), np.zeros(1 << 16, np.uint64),
        np.datetime64("2000-01-01"), np.zeros(3, np.complex128), np.zeros((1, 1), np.uint64),
        np.broadcast_to(np.uint64(0), (8,)),
        np.broadcast_to(np.uint64(1 << 12), (3, 3)), memoryview(words), memoryview(words.reshape(2, 4)),
    ]  # fmt: skip


def everything() -> list[tuple[str, Any]]:
    """(words for it, the value): all of them, in a fixed order."""
    found = [*integers(), *of_other_types(), *arrays()]
    return [(f"{type(value).__name__}#{i}", value) for i, value in enumerate(found)]


def name_of(value: Any) -> str:
    """Words for a value in a report, whatever it is."""
    try:
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) and value.bit_length() > 300 else ""
        text = text or " ".join(repr(value).split())
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) < 90 else text[:90] + "..."


Value = Callable[[], Any]
