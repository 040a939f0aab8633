"""The vector sets e_inv_operands and e_tlb: operands of the instructions that invalidate, and what they leave cached.

An owner is an implementation of the TLB with its walker: the kernels, or the executable specification. Of e_tlb it is
asked that no stale answer comes where the vector says `must_be_fresh`; where stale and fresh are both legal, the
answer must be one of the two. How many entries an owner keeps that it may keep is reported, not judged.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastmmu import reference as ref
from fastmmu.cpu.inv_operands_py import EPT_VPID_CAP, check_invalidation
from fastmmu.exits import Completion
from fastmmu.reference.cpu import inv_operands as operands
from fastmmu.reference.tlb.invalidations import Tlb
from fastmmu.reference.tlb.tlb import value
from fastmmu.tlb.geometry import geometry
from fastmmu.tlb.tlb import TLB

from .cases import Adapter, WalkCase
from .kernel import KernelAdapter
from .spec import SpecAdapter
from .vectors import Report, Vector, read, set_name

__all__ = ["KERNELS", "SPECIFICATION", "Owner", "run", "run_set", "sets"]

PREFIXES = ("e_",)
SMALL = geometry("skylake", l1d="4/4", stlb="8/4")
AD, WALK5 = 1 << 21, 1 << 7
WORDS = {
    Completion.DONE: {"k": "ok"},
    Completion.GENERAL_PROTECTION: {"k": "gp", "vec": 13, "ec": 0},
    Completion.VMFAIL_VALID: {"k": "vmfail", "err": 28},
}


def sets(directory: Path) -> list[Path]:
    """Files of the two sets, in the order of their names."""
    found = [*directory.glob("*.jsonl"), *directory.glob("*.jsonl.xz")]
    return sorted(path for path in found if path.name.startswith(PREFIXES))


@dataclasses.dataclass(frozen=True)
class Owner:
    """An implementation of everything that the sets ask for."""

    name: str
    walker: Adapter
    tlb: Callable[[], TLB | Tlb]
    check: Callable[..., Completion]


def _spec_check(instruction: str, type: int, descriptor: tuple[int, int], **processor: Any) -> Completion:
    return operands.check(instruction, operands.Executing(**processor), type, descriptor)


SPECIFICATION = Owner("executable specification", SpecAdapter(), lambda: Tlb(SMALL), _spec_check)
KERNELS = Owner("kernel", KernelAdapter(), lambda: TLB(SMALL), check_invalidation)


# ---- e_inv_operands --------------------------------------------------------------------------------------------


def operands_outcome(owner: Owner, v: Vector) -> dict[str, Any]:
    """The recorded machine has no five-level EPT; its linear addresses have 48 bits."""
    low, high = (int(half, 16) for half in v["desc"])
    caps = EPT_VPID_CAP & ~WALK5 & ~(0 if v["ad_cap"] else AD)
    ended = owner.check(
        v["op"], int(v["type"], 16), (low, high), caps=caps, maxphyaddr=v["w"], la_bits=48, pcide=bool(v["pcide"])
    )
    return WORDS.get(ended, {"k": ended.name.lower()})


def _compare_operands(owner: Owner, v: Vector, report: TlbReport) -> str:
    got, want = operands_outcome(owner, v), v.get("sdm", v["out"])
    return "" if got == want else f"{v['op']} type {v['type']} {v['desc']}: expected {want}, got {got}"


# ---- e_tlb -----------------------------------------------------------------------------------------------------


def _walk(owner: Owner, v: Vector, mem: dict[int, int]) -> dict[str, Any]:
    """A supervisor's read of `la` by the tables in memory."""
    state = ref.State(
        cr0=0x8001_0031,
        cr3=int(v["cr3"], 16),
        cr4=0x20 | v["pge"] << 7 | v["pcide"] << 17,
        efer=0xD00,
        maxphyaddr=v["w"],
        upper_a="lazy",
    )
    seen = owner.walker.run(WalkCase(mem=mem, state=state, la=int(v["la"], 16), access="r"))
    assert isinstance(seen, dict), seen
    return seen


def _invalidate(tlb: TLB | Tlb, v: Vector) -> None:
    argument = int(v.get("arg", "0"), 16)
    pcid = int(v["cr3"], 16) & 0xFFF if v["pcide"] else 0
    if v["op"] == "invlpg":
        tlb.invlpg(argument, 0, pcid)
    elif v["op"] == "mov_cr3":
        if not (v["pcide"] and argument >> 63):
            tlb.mov_cr3(0, argument & 0xFFF if v["pcide"] else 0)
    elif v["op"] == "invpcid":
        tlb.invpcid(v["type"], 0, v["apcid"], argument)
    else:
        assert v["op"] == "none", f"operation {v['op']!r}"


def tlb_outcome(owner: Owner, v: Vector) -> dict[str, int | None]:
    """Where the first and the second read went (None: #PF), and where tables and cache each would have sent it."""
    la, mem = int(v["la"], 16), {int(pa, 16): int(qword, 16) for pa, qword in v["mem"]}
    first = _walk(owner, v, mem)
    tlb = owner.tlb()
    tlb.switch(0, int(v["cr3"], 16) & 0xFFF if v["pcide"] else 0)
    size = {1 << 12: "4k", 1 << 21: "2m", 1 << 30: "1g"}[first["gps"]]
    global_page = bool(v["pge"] and v["glob"])
    rights = ("u" if first["us"] else "s") + "re" + ("w" if first["rw"] else "") + ("" if first["xd"] else "x")
    tlb.fill(la, value(first["pa"], size, flags=rights + ("g" if global_page else "")))
    mem |= first["ch"]
    mem[int(v["set"][0], 16)] = int(v["set"][1], 16)
    _invalidate(tlb, v)
    fresh = _walk(owner, v, mem)
    _, cached = tlb.lookup(la)
    stale = cached & 0x000F_FFFF_FFFF_F000 | la & (first["gps"] - 1) if cached else None
    return {
        "first": first["pa"],
        "fresh": fresh.get("pa"),
        "second": stale if cached else fresh.get("pa"),
        "kept": int(bool(cached)),
    }


def _compare_tlb(owner: Owner, v: Vector, report: TlbReport) -> str:
    got, recorded = tlb_outcome(owner, v), v["out"]
    if got["first"] != int(recorded["pa1"], 16):
        return f"first read: expected {recorded['pa1']}, got {got['first']}"
    if recorded["k"] == "fresh":
        new = None if "pf" in recorded else int(recorded["pa2"], 16)
        if got["fresh"] != new:
            return f"the new mapping: expected {recorded.get('pa2', '#PF')}, got {got['fresh']}"
    if v["must_be_fresh"] and got["second"] != got["fresh"]:
        return f"{v['op']} {v.get('arg', '')}: stale answer {got['second']:x} where the new mapping is required"
    if got["second"] not in (got["first"], got["fresh"]):
        return f"second read: {got['second']} is neither the old mapping nor the new"
    report.may_keep += not v["must_be_fresh"]
    report.kept += bool(got["kept"])
    return ""


# ---- a set -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class TlbReport(Report):
    """As :class:`Report`; `kept` of `may_keep` cached entries survived that were allowed to."""

    may_keep: int = 0
    kept: int = 0

    def line(self) -> str:
        kept = f", kept {self.kept} of {self.may_keep} entries that need not go" if self.may_keep else ""
        return super().line() + kept


def run_set(owner: Owner, path: Path, *, stride: int = 1, examples: int = 5) -> TlbReport:
    """Every `stride`-th vector of a file through an implementation."""
    report = TlbReport(set_name(path))
    for number, v in enumerate(read(path)):
        if number % stride:
            continue
        difference = (_compare_operands if "desc" in v else _compare_tlb)(owner, v, report)
        report.compared += 1
        if difference:
            report.mismatches += 1
            if len(report.examples) < examples:
                report.examples.append(f"{report.name} i={v['i']}: {difference}")
    return report


def run(owners: list[Owner], paths: list[Path], stride: int = 1) -> int:
    """Every set through every owner, a line printed of each; number of mismatches."""
    mismatches = 0
    for owner in owners if paths else ():
        print(f"{owner.name}, TLB and operands:")
        for path in paths:
            begin = time.perf_counter()
            mismatches += run_set(owner, path, stride=stride).show(begin)
    return mismatches
