"""TPR traffic and interrupts as three kinds of guests make them, put between the accesses of any trace.

Where the figures come from:

- levels and vectors of Windows: the table HalpIRQLtoTPR of ReactOS's HAL (APC 3DH, DISPATCH 41H, devices 51H to B1H,
  clock D1H); each KfRaiseIrql reads the TPR and writes it, each KfLowerIrql writes it.
- 32-bit Windows XP and 2003 write the TPR at every change of IRQL, thousands to over 100,000 times a second (apic.md
  §2.1). Against about 10**9 accesses a second that is up to some hundreds a million accesses; the rates below are
  estimates within that.
- a clock interrupt 64 times (Windows), 250 times (Linux) a second, devices some thousand times: estimates.
- Linux leaves its TPR alone after the start (setup_local_APIC); it arms its timer by IA32_TSC_DEADLINE, vector ECH.
- Windows asks for APCs and DPCs by interrupts to itself (3DH, 41H), and for other processors by E1H; Linux for other
  processors by FDH (reschedule) and FBH (call a function). The rates are estimates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastmmu._checked import check_fields, checked
from fastmmu.errors import ConfigError
from fastmmu.ops import LAST_ACCESS, Op
from fastmmu.trace.base import Derived, Trace
from fastmmu.trace.events import Batch, inserted

__all__ = ["PROFILES", "TprProfile", "tpr_profile", "with_tpr"]

TPR, SVR, LVT_TIMER = 0x80, 0xF0, 0x320
TO_SELF, BY_DEADLINE = 1 << 18, 2 << 17
MILLION = 1e6
BLOCK = 1024  # draws at a time: the events do not depend on the batches in which they are asked for


@dataclass(frozen=True)
class TprProfile:
    """Rates are per million accesses of the trace.

    changes: how often the TPR is raised, and lowered again. reads: reads of the TPR for each raise. held: mean accesses
    until it is lowered. levels: TPR values to which it is raised, value -> weight. interrupts: of devices. vectors: of
    these, vector -> weight. sites: instructions of the guest's kernel that access the TPR. handler:
    ``Config.guest_handler`` of such a guest. register: "page", the TPR is reached through the APIC's page, as 32-bit
    guests do; "cr8", by MOV to and from CR8, as 64-bit ones. ipis: interprocessor interrupts, to another vCPU, of a
    guest with one to itself; ipi_vectors: of these. timer: how often the timer is armed, by a deadline half as far as
    the next time.
    """

    name: str
    changes: float
    reads: float
    held: float
    levels: Mapping[int, float]
    interrupts: float
    vectors: Mapping[int, float]
    sites: int = 8
    handler: Literal["eoi", "irql"] = "irql"
    ipis: float = 0
    ipi_vectors: Mapping[int, float] = field(default_factory=lambda: {0xE1: 1})
    timer: float = 0
    timer_vector: int = 0xEC
    seed: int = field(default=1)
    register: Literal["page", "cr8"] = "page"

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("changes", "reads", "held", "interrupts", "ipis", "timer"):
            if not 0 <= getattr(self, name) <= MILLION:
                raise ConfigError(f"TPR traffic: {name}={getattr(self, name)!r} is outside 0..1000000")
        if self.changes * self.held >= MILLION:
            raise ConfigError(f"TPR traffic: changes={self.changes:g} of held={self.held:g} accesses fill all the time")
        for name in ("levels", "vectors", "ipi_vectors"):
            weights = getattr(self, name)
            if not all(0 <= value <= 255 for value in weights) or not sum(weights.values()) > 0:
                raise ConfigError(f"TPR traffic: {name}={weights!r} must be bytes with weights, not all 0")
        if not 16 <= self.timer_vector <= 255:
            raise ConfigError(f"TPR traffic: timer_vector={self.timer_vector} is outside 16..255")
        if not 1 <= self.sites <= 128:
            raise ConfigError(f"TPR traffic: sites={self.sites} is outside 1..128")


_DEVICES = {0x51: 1, 0x61: 1, 0x71: 1, 0x81: 2, 0x91: 2, 0xA1: 1, 0xB1: 1, 0xD1: 1}
_SOFTWARE = {0x41: 3, 0x3D: 1, 0xE1: 1}
_IRQLS = {0x3D: 2, 0x41: 6, 0x61: 0.5, 0x81: 0.5, 0xB1: 0.5, 0xFF: 0.5}
PROFILES = {
    "winxp": TprProfile("winxp", 200, 1, 40, _IRQLS, 5, _DEVICES, ipis=5, ipi_vectors=_SOFTWARE),
    "win2003": TprProfile("win2003", 120, 1, 40, _IRQLS, 20, _DEVICES, sites=12, ipis=20, ipi_vectors=_SOFTWARE),
    "linux": TprProfile(
        "linux",
        0,
        0,
        0,
        {0x10: 1},
        5,
        {0x31: 1, 0x41: 1},
        handler="eoi",
        ipis=2,
        ipi_vectors={0xFD: 3, 0xFB: 1},
        timer=2,
    ),
}
"""Name -> profile; every number is adjustable with :func:`tpr_profile`."""


@checked
def tpr_profile(name: str, **changes: Any) -> TprProfile:
    """A profile by its name, with some numbers changed.

    :raises ConfigError: an unknown name or number, or a value out of range.
    """
    if name not in PROFILES:
        raise ConfigError(f"no TPR traffic {name!r}; there are {', '.join(PROFILES)}")
    try:
        return replace(PROFILES[name], **changes)
    except TypeError as error:
        raise ConfigError(f"TPR traffic {name}: {error}") from error


@checked
def with_tpr(trace: Trace, profile: TprProfile | str, vcpu: int = 0, vcpus: int = 1) -> Trace:
    """The trace with the APIC events of a profile between its accesses; they are the same for every `seed`.

    :param vcpu, vcpus: number of the vCPU that runs the trace, and how many the guest has: whom IPIs go to, and that
        each does something else. :raises ConfigError: an unknown profile, no such vCPU.
    """
    if not 0 <= vcpu < vcpus <= 255:
        raise ConfigError(f"TPR traffic: vCPU {vcpu} of {vcpus}; number them from 0, there are at most 255")
    return WithTpr(trace, tpr_profile(profile) if isinstance(profile, str) else profile, vcpu, vcpus)


Events = tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8], npt.NDArray[np.uint64]]


def _weighted(chance: np.random.Generator, weights: Mapping[int, float], n: int) -> npt.NDArray[np.uint64]:
    share = np.array(list(weights.values())) / sum(weights.values())
    return np.array(list(weights), np.uint64)[chance.choice(len(weights), n, p=share)]


def _random(profile: TprProfile, vcpu: int, kind: int) -> np.random.Generator:
    return np.random.default_rng([profile.seed, kind, vcpu] if vcpu else [profile.seed, kind])


def _times(start: float, gaps: np.ndarray) -> np.ndarray:
    """When events come that lie so far apart; of rates near 0 beyond all numbers, which is never."""
    with np.errstate(over="ignore"):
        return start + np.cumsum(gaps)


def _tpr_events(profile: TprProfile, vcpu: int) -> Iterator[Events]:
    """Raises and lowers, in order: (accesses before the event, operation, addr)."""
    chance = _random(profile, vcpu, 0)
    gap, start = MILLION / profile.changes - profile.held, 0.0
    by_page = profile.register == "page"
    read, write = (Op.APIC_READ, Op.APIC_WRITE) if by_page else (Op.CR8_READ, Op.CR8_WRITE)
    site, register = np.uint64(48), np.uint64(TPR << 32)
    whole, share = divmod(profile.reads, 1)
    while True:
        steps = np.stack([chance.exponential(gap, BLOCK), chance.exponential(max(profile.held, 1), BLOCK)], axis=1)
        at = _times(start, steps.ravel())
        start = float(at[-1])
        raised, lowered = at[0::2], at[1::2]
        sites = chance.integers(0, profile.sites, BLOCK).astype(np.uint64) << site
        levels = _weighted(chance, profile.levels, BLOCK)
        count = int(whole) + (chance.random(BLOCK) < share).astype(int)
        reads = np.repeat(np.arange(BLOCK), count)
        values = (
            [sites[reads] | register, sites | register | levels, sites | register]
            if by_page
            else [np.zeros(len(reads), np.uint64), levels >> np.uint64(4), np.zeros(BLOCK, np.uint64)]
        )
        yield _ordered([raised[reads], raised, lowered], [read, write, write], values)


def _interrupts(profile: TprProfile, vcpu: int) -> Iterator[Events]:
    chance = _random(profile, vcpu, 1)
    start = 0.0
    while True:
        at = _times(start, chance.exponential(MILLION / profile.interrupts, BLOCK))
        start = float(at[-1])
        yield at, np.full(BLOCK, Op.DEVICE_INTERRUPT, np.uint8), _weighted(chance, profile.vectors, BLOCK)


def _ipis(profile: TprProfile, vcpu: int, vcpus: int) -> Iterator[Events]:
    chance, start = _random(profile, vcpu, 2), 0.0
    while True:
        at = _times(start, chance.exponential(MILLION / profile.ipis, BLOCK))
        start = float(at[-1])
        icr = _weighted(chance, profile.ipi_vectors, BLOCK)
        if vcpus == 1:
            icr |= np.uint64(TO_SELF)
        else:
            others = (vcpu + chance.integers(1, vcpus, BLOCK)) % vcpus
            icr |= others.astype(np.uint64) << np.uint64(32)
        yield at, np.full(BLOCK, Op.IPI, np.uint8), icr


def _deadlines(profile: TprProfile) -> Iterator[Events]:
    period, done = MILLION / profile.timer, 0
    after = np.full(BLOCK, max(int(min(period / 2, 2.0**62)), 1), np.uint64)
    while True:
        at = (done + np.arange(1, BLOCK + 1, dtype=np.float64)) * period
        yield at, np.full(BLOCK, Op.TSC_DEADLINE, np.uint8), after
        done += BLOCK


def _ordered(at: list[Any], op: list[Op], addr: list[Any]) -> Events:
    places = np.concatenate(at)
    ops = np.concatenate([np.full(len(part), each, np.uint8) for part, each in zip(at, op, strict=True)])
    order = np.argsort(places, kind="stable")  # a read comes before the write of the same change
    return places[order], ops[order], np.concatenate(addr)[order]


class _Stream:
    """Events of one source, up to any place."""

    def __init__(self, source: Iterator[Events] | None) -> None:
        self.source = source
        self.ahead: Events = (np.empty(0), np.empty(0, np.uint8), np.empty(0, np.uint64))

    def until(self, place: float) -> Events:
        while self.source is not None and not (len(self.ahead[0]) and self.ahead[0][-1] >= place):
            more = next(self.source)
            places, op, addr = (np.concatenate([old, new]) for old, new in zip(self.ahead, more, strict=True))
            self.ahead = places, op, addr
        n = int(np.searchsorted(self.ahead[0], place))
        places, op, addr = self.ahead
        self.ahead = places[n:], op[n:], addr[n:]
        return places[:n], op[:n], addr[:n]


class WithTpr(Derived):
    """With the events of a profile."""

    def __init__(self, inner: Trace, profile: TprProfile, vcpu: int = 0, vcpus: int = 1) -> None:
        super().__init__(inner)
        self.profile, self.vcpu, self.vcpus = profile, vcpu, vcpus
        self.name = f"{inner.name} as {profile.name}"

    def _pass(self, chunk: int) -> Iterator[Batch]:
        profile = self.profile
        streams = [
            _Stream(_tpr_events(profile, self.vcpu) if profile.changes else None),
            _Stream(_interrupts(profile, self.vcpu) if profile.interrupts else None),
            _Stream(_ipis(profile, self.vcpu, self.vcpus) if profile.ipis else None),
            _Stream(_deadlines(profile) if profile.timer else None),
        ]
        registers = [SVR << 32 | 0x1FF]
        if profile.timer:
            registers.append(LVT_TIMER << 32 | BY_DEADLINE | profile.timer_vector)
        n = len(registers)
        start = np.array(registers, np.uint64)
        counted = np.zeros(n, np.uint32) if self.instructions == "column" else None
        yield Batch(np.full(n, Op.APIC_WRITE, np.uint8), np.zeros(n, np.uint8), start, counted)
        done = 0
        for batch in self.inner.batches(chunk):
            access = batch.op <= LAST_ACCESS
            rows = np.flatnonzero(access)
            places, op, addr = (
                np.concatenate(parts)
                for parts in zip(*(stream.until(done + len(rows)) for stream in streams), strict=True)
            )
            order = np.argsort(places, kind="stable")
            before = rows[(places[order] - done).astype(np.int64)] if len(rows) else places[order].astype(np.int64)
            done += len(rows)
            out = inserted(batch, before, op[order], addr[order])
            for first in range(0, len(out), chunk):
                yield out[first : first + chunk]
