"""The sets d_vapic and d_vmentry: APIC virtualization and VM entry, through the specification and the kernels.

Of a vector with a tag that FORMAT.md names as an open question the expectation is the SDM's, as stated there; nothing
is masked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from fastmmu import reference as ref
from fastmmu.cpu.vapic_py import VirtualApic
from fastmmu.cpu.vmentry_py import vm_entry
from fastmmu.reference.cpu import vmentry as rules

from .vectors import Report, Vector, read, set_name

__all__ = [
    "IMPLEMENTATIONS",
    "KERNEL",
    "SPECIFICATION",
    "Implementation",
    "Unreachable",
    "entry_fields",
    "expected",
    "page_of",
    "run",
    "run_set",
    "sets",
]

PREFIX = "d_"
Observed = dict[str, Any]


def sets(directory: Path) -> list[Path]:
    """Files of the sets that concern the APIC and VM entry."""
    found = [*directory.glob("*.jsonl"), *directory.glob("*.jsonl.xz")]
    return sorted(path for path in found if path.name.startswith(PREFIX))


# ---- expectations --------------------------------------------------------------------------------------------


def _changes(v: Vector, out: Vector) -> dict[int, int]:
    return {int(pa, 16): int(value, 16) for pa, value in out.get("ch", ())}


def _memory(v: Vector) -> dict[int, int]:
    return {int(pa, 16): int(value, 16) for pa, value in v["mem"]}


def _self_ipi_is_stored(v: Vector, want: Observed) -> None:
    at, data = int(v["vapa"], 16) + 0x3F0, int(v["data"], 16)
    if _memory(v).get(at, 0) != data:
        want["ch"][at] = data


def _not_virtualized_unaligned(v: Vector, want: Observed) -> None:
    untouched = {"rvi": v["rvi"], "svi": v["svi"], "vppr": v["vppr"]}
    want.update(k="exit", reason=44, q=v["off"] | 0x1000, when="fault", ch={}, pend=0, **untouched)


def _posted_without_delivery(v: Vector, want: Observed) -> None:
    want.clear()
    want.update(k="vmfail", err=7)


SDM: dict[str, Callable[[Vector, Observed], None]] = {
    "x2_self_ipi_store": _self_ipi_is_stored,
    "vid_only_unaligned": _not_virtualized_unaligned,
    "pint_without_tprs": _posted_without_delivery,
}
"""Deviations of the recorded machine that FORMAT.md states in words: what the SDM expects instead."""


def expected(v: Vector) -> Observed:
    out = v["sdm"] if "sdm" in v else v["out"]
    want: Observed = {key: out[key] for key in out if key not in ("ch", "data")}
    if "data" in out:
        want["data"] = int(out["data"], 16)
    if "ch" in out:
        want["ch"] = _changes(v, out)
    if "sdm" not in v:
        for tag in v.get("dev", ()):
            SDM[tag](v, want)
    return want


# ---- implementations -----------------------------------------------------------------------------------------


class Implementation(Protocol):
    """Answers both sets in the form of :func:`expected`."""

    name: str

    def vapic(self, v: Vector) -> Observed: ...

    def vmentry(self, v: Vector) -> Observed: ...


FIELDS = {
    "tpr_shadow": "tprs",
    "virtualize_accesses": "vaa",
    "x2apic": "x2",
    "register_virtualization": "arv",
    "interrupt_delivery": "vid",
    "interrupt_window_exiting": "iwe",
    "cr8_load_exiting": "cr8l",
    "cr8_store_exiting": "cr8s",
}


def page_of(v: Vector) -> bytearray:
    page, base = bytearray(4096), int(v["vapa"], 16)
    for pa, value in _memory(v).items():
        page[pa - base : pa - base + 8] = value.to_bytes(8, "little")
    return page


def _operate(apic: Any, v: Vector) -> Any:
    """The operation of a vector, on anything that has the specification's methods."""
    op, data = v["op"], int(v.get("data", "0"), 16)
    if op == "rd":
        return apic.read(v["off"], v["len"], event=bool(v["inev"]))
    if op == "wr":
        return apic.write(v["off"], v["len"], data, event=bool(v["inev"]))
    if op == "mov_to_cr8":
        return apic.write_cr8(data, v["reg"])
    if op == "mov_from_cr8":
        return apic.read_cr8(v["reg"])
    if op == "wrmsr":
        return apic.wrmsr(v["msr"], data)
    if op == "rdmsr":
        return apic.rdmsr(v["msr"])
    assert op == "deliver", op
    return apic.deliver()


def _apic(make: Callable[..., Any], v: Vector) -> Any:
    bitmap = sum(int(text, 16) << 32 * i for i, text in enumerate(v.get("eoix", ())))
    flags = {name: bool(v[short]) for name, short in FIELDS.items()}
    state = {name: v[name] for name in ("rvi", "svi", "vppr")}
    return make(**flags, **state, threshold=v["thr"], eoi_exit_bitmap=bitmap, page=page_of(v))


def _state(apic: Any, v: Vector, before: bytes, seen: Observed) -> Observed:
    base, after = int(v["vapa"], 16), bytes(apic.page)
    seen["ch"] = {
        base + at: int.from_bytes(after[at : at + 8], "little")
        for at in range(0, 4096, 8)
        if before[at : at + 8] != after[at : at + 8]
    }
    if v["vid"]:
        seen |= {"rvi": apic.rvi, "svi": apic.svi, "vppr": apic.vppr, "pend": int(apic.pending)}
    return seen


def entry_fields(v: Vector) -> dict[str, int]:
    """VMCS fields of a vector of d_vmentry."""
    secondary = {"vaa": 0, "ept": 1, "x2": 4, "vpide": 5, "ug": 7, "arv": 8, "vid": 9, "pmle": 17, "mbe": 22}
    return {
        "pin_based": v["xint"] | v["pint"] << 7,
        "primary": v["tprs"] << 21 | v["sec"] << 31,
        "secondary": sum(v[name] << bit for name, bit in secondary.items()),
        "vm_exit": v["ack"] << 15,
        "vm_entry": 1 << 9,  # the recorded guest is in long mode
        "vpid": v["vpid"],
        "posted_vector": v["piv"],
        "guest_interrupt_status": v["rvi"] | v["svi"] << 8,
        "virtual_apic_address": int(v["vapf"], 16),
        "apic_access_address": int(v["aapf"], 16),
        "tpr_threshold": v["thr"],
        "posted_descriptor_address": int(v["pid"], 16),
        "eptp": int(v["eptp"], 16),
        "pml_address": int(v["pml"], 16),
    }


class Specification:
    name = "executable specification"

    def vapic(self, v: Vector) -> Observed:
        apic = _apic(ref.VirtualApic, v)
        before = bytes(apic.page)
        match _operate(apic, v):
            case int(vector):
                seen: Observed = {"k": "ok", "ivec": vector}
            case ref.vapic.Done(data):
                seen = {"k": "ok"} | ({} if data is None else {"data": data})
            case ref.vapic.Exit(reason, qualification, trap):
                seen = {"k": "exit", "reason": reason, "q": qualification, "when": "trap" if trap else "fault"}
            case ref.vapic.Fault(vector, error_code):
                seen = {"k": "exc", "vec": vector, "ec": error_code}
            case ref.vapic.NotVirtualized():
                seen = {"k": "passthru"}
        return _state(apic, v, before, seen)

    def vmentry(self, v: Vector) -> Observed:
        # the recorded machine has no 5-level EPT
        caps = rules.Capabilities(maxphyaddr=v["w"], ept=ref.EptCap.ALL & ~ref.EptCap.WALK5)
        match rules.enter(rules.EntryFields(**entry_fields(v)), v["vtpr"], None, caps):
            case rules.VmFail(error):
                return {"k": "vmfail", "err": error}
            case rules.EntryExit(reason, qualification):
                return {"k": "exit", "reason": reason, "q": qualification}
            case rules.Entered(vppr, pending):
                vid = v["sec"] and v["vid"]
                return {"k": "ok"} | ({"vppr": vppr, "pend": int(pending)} if vid else {})


class Kernel:
    name = "kernel"

    def vapic(self, v: Vector) -> Observed:
        apic = _apic(VirtualApic, v)
        before = bytes(apic.page)
        outcome = _operate(apic, v)
        seen: Observed
        if isinstance(outcome, int):
            seen = {"k": "ok", "ivec": outcome}
        elif outcome.kind == "done":
            seen = {"k": "ok"} | ({} if outcome.data is None else {"data": outcome.data})
        elif outcome.kind == "exit":
            when = "trap" if outcome.trap else "fault"
            seen = {"k": "exit", "reason": outcome.reason, "q": outcome.qualification, "when": when}
        elif outcome.kind == "fault":
            seen = {"k": "exc", "vec": outcome.vector, "ec": 0}
        else:
            seen = {"k": "passthru"}
        return _state(apic, v, before, seen)

    def vmentry(self, v: Vector) -> Observed:
        entry = vm_entry(**entry_fields(v), vtpr=v["vtpr"], maxphyaddr=v["w"], walk5=False)
        if entry.error:
            return {"k": "vmfail", "err": entry.error}
        if entry.reason is not None:
            return {"k": "exit", "reason": entry.reason, "q": entry.qualification}
        return {"k": "ok"} | ({"vppr": entry.vppr, "pend": int(entry.pending)} if v["sec"] and v["vid"] else {})


class Unreachable(Exception):
    """No VM entry leads to the state that a vector begins in."""


SPECIFICATION, KERNEL = Specification(), Kernel()
IMPLEMENTATIONS: tuple[Implementation, ...] = (SPECIFICATION, KERNEL)


def run_set(implementation: Implementation, path: Path, *, stride: int = 1, examples: int = 5) -> Report:
    """Every `stride`-th vector of a file through an implementation."""
    report = Report(set_name(path))
    for number, v in enumerate(read(path)):
        if number % stride:
            continue
        ask = {"d_vapic": implementation.vapic, "d_vmentry": implementation.vmentry}.get(v["s"])
        if ask is None:
            report.not_compared[f"an unknown set {v['s']}"] += 1
            continue
        try:
            want, got = expected(v), ask(v)
        except Unreachable as why:
            report.not_compared[str(why)] += 1
            continue
        report.compared += 1
        for tag in v.get("dev", ()):
            report.masked[f"by the word of the SDM, {tag}"] += "sdm" not in v
        different = [key for key in sorted(want.keys() | got.keys()) if want.get(key) != got.get(key)]
        if different:
            report.mismatches += 1
            if len(report.examples) < examples:
                words = "; ".join(f"{key}: expected {want.get(key)}, got {got.get(key)}" for key in different)
                report.examples.append(f"{report.name} i={v['i']}: {words}")
    return report


def run(implementations: list[Implementation], paths: list[Path], stride: int = 1) -> int:
    """Print what each implementation makes of each set; the number of mismatches."""
    mismatches = 0
    for implementation in implementations if paths else ():
        print(f"{implementation.name}, APIC and VM entry:")
        for path in paths:
            mismatches += run_set(implementation, path, stride=stride).show()
    return mismatches
