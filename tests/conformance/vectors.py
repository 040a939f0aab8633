"""Read, run and compare the vector sets a_*, b_* and c_* (one JSON object a line, .jsonl or .jsonl.xz).

The expectation is `sdm` where a vector has it, else `out`; nothing is masked but what :data:`MASKS` names. The sets
assume that accessed flags of upper guest entries are set lazily.
"""

from __future__ import annotations

import functools
import json
import lzma
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmmu import reference as ref
from tests.support.recordings import all_of, sample_of

from .cases import Adapter, Case, EptpCase, GpaCase, Observed, PdpteCase, WalkCase
from .differences import differences

__all__ = [
    "MASKS",
    "Report",
    "case_of",
    "compare",
    "data_directory",
    "read",
    "run_set",
    "sample_directory",
    "sets",
    "slice_stride",
]

Vector = dict[str, Any]
PREFIXES = ("a_", "b_", "c_")


# ---- files ---------------------------------------------------------------------------------------------------


def sample_directory() -> Path:
    """The sample of each set that the project carries."""
    return sample_of("vectors")


def data_directory() -> Path:
    """Directory of the full sets: FASTMMU_VECTORS, else ../shared/vectors beside the project."""
    return all_of("vectors", "FASTMMU_VECTORS")


def sets(directory: Path) -> list[Path]:
    """Files of the sets that concern translation, in the order of their names."""
    found = [*directory.glob("*.jsonl"), *directory.glob("*.jsonl.xz")]
    return sorted(path for path in found if path.name.startswith(PREFIXES))


def set_name(path: Path) -> str:
    return path.name.partition(".")[0]


def read(path: Path) -> Iterator[Vector]:
    """Vectors of one file; a line that cannot be read is an error that names file and line."""
    with lzma.open(path, "rt") if path.suffix == ".xz" else path.open("rt") as lines:
        for number, line in enumerate(lines, 1):
            try:
                vector = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not a JSON object ({error})") from error
            yield vector


@functools.cache
def length(path: Path) -> int:
    return sum(1 for _ in read(path))


def slice_stride(path: Path, wanted: int = 250) -> int:
    """Pytest takes one vector of so many of a full set; `python -m tests.conformance` takes all."""
    return max(1, length(path) // wanted)


# ---- a vector as a case --------------------------------------------------------------------------------------


def _memory(v: Vector) -> dict[int, int]:
    return {int(pa, 16): int(value, 16) for pa, value in v["mem"]}


def _ept(v: Vector) -> ref.Ept | None:
    if "eptp" not in v:
        return None
    caps = ref.EptCap.ALL
    if not v["xo"]:
        caps &= ~ref.EptCap.EXECUTE_ONLY
    if not v["p1g"]:
        caps &= ~ref.EptCap.PAGE_1G
    pml = (int(v["pml"][0], 16), v["pml"][1]) if "pml" in v else None
    return ref.Ept(eptp=int(v["eptp"], 16), caps=caps, maxphyaddr=v["w"], mbec=v["mbe"], pml=pml)


def _state(v: Vector) -> ref.State:
    pdpte = [int(entry, 16) for entry in v.get("pdpte", ["0"] * 4)]
    return ref.State(
        cr0=int(v["cr0"], 16),
        cr3=int(v["cr3"], 16),
        cr4=int(v["cr4"], 16),
        efer=int(v["efer"], 16),
        cpl=v["cpl"],
        ac=v["ac"],
        implicit=v["impl"],
        pkru=int(v["pkru"], 16),
        pat=int(v["pat"], 16),
        mtrrs=ref.Mtrrs(def_type=0x800 | v.get("mtrr", 6)),
        pdpte=(pdpte[0], pdpte[1], pdpte[2], pdpte[3]),
        maxphyaddr=v["w"],
        gb_pages=v["p1g"],
        upper_a="lazy",
    )


def _why(v: Vector, ept: ref.Ept) -> ref.GpaReference:
    """The reference that a b_ept vector describes (ept.md §4)."""
    gla = int(v["gla"], 16) if v["glav"] else None
    if not v["walk"]:
        return ref.GpaReference(
            rd=v["acc"] in ("r", "rw"),
            wr=v["acc"] in ("w", "rw"),
            fe=v["acc"] == "x",
            gla=gla,
            translated=gla is not None,
            us=v["gu"],
            rw=v["gw"],
            xd=v["gnx"],
        )
    if gla is None:  # a load of the PDPTE registers: a plain read, EPT A/D or not
        return ref.GpaReference(rd=True)
    return ref.GpaReference(rd=True, wr=ept.ad or v["acc"] != "r", gla=gla)


def case_of(v: Vector) -> Case:
    """What the vector asks: its fields say which question it is, whatever its set is called."""
    if "ad_cap" in v:
        caps = ref.EptCap.ALL & ~ref.EptCap.WALK5  # the recorded machine has no 5-level EPT
        return EptpCase(eptp=int(v["eptp"], 16), caps=caps & ~(0 if v["ad_cap"] else ref.EptCap.AD), maxphyaddr=v["w"])
    ept = _ept(v)
    if "gpa" in v:
        assert ept is not None
        return GpaCase(mem=_memory(v), ept=ept, gpa=int(v["gpa"], 16), why=_why(v, ept))
    if "la" not in v:
        return PdpteCase(mem=_memory(v), cr3=int(v["cr3"], 16), maxphyaddr=v["w"], ept=ept)
    return WalkCase(mem=_memory(v), state=_state(v), la=int(v["la"], 16), access=v["acc"], ept=ept)


# ---- what may be masked, and why -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Mask:
    """Bits of the qualification that an expectation cannot be held to."""

    name: str
    why: str
    applies: Callable[[Vector, Observed], bool]
    bits: int


def _structure_update_without_ad(v: Vector, want: Observed) -> bool:
    return bool(v.get("walk") and v["acc"] == "w" and not int(v["eptp"], 16) >> 6 & 1)


MASKS = (
    Mask(
        "rmw_read_bit",
        "a read-modify-write may or may not report bit 0 (FORMAT.md, don't care; ept.md §4)",
        lambda v, want: v.get("acc") == "rw" and not v.get("walk") and want["q"] >> 8 & 1 == 1,
        1,
    ),
    Mask(
        "guest_ad_read_bit",
        "a violation by an A/D update of a guest entry, EPT A/D off: bit 0 is the implementation's own (ept.md §4)",
        lambda v, want: _structure_update_without_ad(v, want) or "guest_ad_ept_ro" in v.get("dev", ()),
        1,
    ),
)


# ---- comparison ----------------------------------------------------------------------------------------------

_HEX = ("pa", "gpa", "gla", "cr2", "q", "ec", "pmli", "gps", "eps", "emt", "ipat", "valid")


def _number(value: Any) -> int:
    return int(value, 16) if isinstance(value, str) else int(value)


def outcome_of(v: Vector) -> dict[str, Any]:
    """As recorded, with the recording machine's known deviations corrected."""
    outcome: dict[str, Any] = v["sdm"] if "sdm" in v else v["out"]
    return outcome


def expected(v: Vector) -> Observed:
    """The outcome asked for, in the form of an adapter's answer."""
    recorded = outcome_of(v)
    want: Observed = {key: _number(recorded[key]) for key in _HEX if key in recorded}
    if "k" in recorded:
        want["k"] = recorded["k"]
    if "ch" in recorded:
        want["ch"] = {int(pa, 16): int(value, 16) for pa, value in recorded["ch"]}
    if "mt" in recorded or "mtx" in recorded:
        # mtx is the architecture's table where the recorded machine deviates from it (set a), else the only one.
        want["mt"] = recorded.get("mtx", recorded.get("mt"))
    if want.get("k") == "ev" and not want["q"] >> 7 & 1:
        want.pop("gla", None)  # undefined
    return want


def compare(v: Vector, got: Observed, unreported: frozenset[str] = frozenset()) -> tuple[list[str], list[str]]:
    """(differences in words, names of the masks that made a difference)."""
    want, masked = expected(v), []
    got = dict(got)
    unreported |= got.get("unreported", set())
    if "q" in want and "q" in got and want["k"] == "ev":
        for mask in MASKS:
            if mask.applies(v, want) and (want["q"] ^ got["q"]) & mask.bits:
                masked.append(mask.name)
                got["q"] = got["q"] & ~mask.bits | want["q"] & mask.bits
    return differences(want, got, unreported, ("expected", "got")), masked


@dataclass
class Report:
    """Result of one set."""

    name: str
    compared: int = 0
    mismatches: int = 0
    not_compared: Counter[str] = field(default_factory=Counter)
    masked: Counter[str] = field(default_factory=Counter)
    unreported: Counter[str] = field(default_factory=Counter)
    moved: int = 0
    examples: list[str] = field(default_factory=list)

    def line(self) -> str:
        """``set: N compared, M mismatches, K not compared (why)``, and what was masked."""
        why = f" ({'; '.join(f'{reason}: {n}' for reason, n in sorted(self.not_compared.items()))})"
        masked = "; ".join(f"{name}: {n}" for name, n in sorted(self.masked.items()))
        fields = "; ".join(f"{name}: {n}" for name, n in sorted(self.unreported.items()))
        return (
            f"{self.name}: {self.compared} compared, {self.mismatches} mismatches, "
            f"{self.not_compared.total()} not compared{why if self.not_compared else ''}"
            f"{f', masked {masked}' if masked else ''}{f', without field {fields}' if fields else ''}"
            f"{f', tables moved {self.moved}' if self.moved else ''}"
        )

    def show(self, began: float | None = None) -> int:
        """Prints the line and the examples, with the time since `began`; the mismatches."""
        print(self.line() + (f" [{time.perf_counter() - began:.1f} s]" if began is not None else ""), flush=True)
        for example in self.examples:
            print(f"    {example}")
        return self.mismatches


def run_set(adapter: Adapter, path: Path, *, stride: int = 1, examples: int = 5) -> Report:
    """Every `stride`-th vector of a file through an implementation."""
    report = Report(set_name(path))
    for number, v in enumerate(read(path)):
        if number % stride:
            continue
        got = adapter.run(case_of(v))
        if isinstance(got, str):
            report.not_compared[got] += 1
            continue
        report.moved += bool(got.get("moved"))
        for key in got.get("unreported", set()) & expected(v).keys():
            report.unreported[key] += 1
        wrong, masked = compare(v, got, adapter.unreported)
        report.compared += 1
        report.masked.update(masked)
        if wrong:
            report.mismatches += 1
            if len(report.examples) < examples:
                report.examples.append(f"{report.name} i={v['i']}: {'; '.join(wrong)}")
    return report
