"""The sets d_vapic and d_vmentry through VMLAUNCH and the operations of a guest (fastmmu.vmx)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmmu import PhysicalMemory
from fastmmu import reference as ref
from fastmmu.reference.cpu.vmx import FIELDS_OF_ENTRY
from fastmmu.vmx import (
    LONG_MODE_GUEST,
    Capabilities,
    Cpu,
    Exit,
    ExitReason,
    Field,
    GuestEvent,
    GuestOp,
    Op,
    Vmcs,
    VmFail,
)

from .vectors import Vector
from .vmx import Observed, Unreachable, entry_fields, expected, page_of

__all__ = ["INSTRUCTIONS"]

ENTRY_FIELDS = {name: Field(encoding) for name, encoding in FIELDS_OF_ENTRY.items()}
TABLES, VIRTUAL_APIC, APIC_ACCESS, MSR_BITMAP = 0x4000, 0x10000, 0x11000, 0x12000


class Instructions:
    """Through VMLAUNCH and `Cpu.run`: a 64-bit guest whose tables map memory one to one. Pages of a vector that lie
    anywhere are moved to where memory is."""

    name = "VMX instructions"

    def __init__(self) -> None:
        self.cpus: dict[int, Cpu] = {}

    def cpu(self, width: int) -> Cpu:
        """With a VMCS that was never launched and a guest that can be."""
        if width not in self.cpus:
            caps = Capabilities(maxphyaddr=width, ept_vpid=ref.EptCap.ALL & ~ref.EptCap.WALK5)
            self.cpus[width] = cpu = Cpu(PhysicalMemory(1 << 17), caps=caps)
            words = cpu.memory.u64
            for level in range(3):
                words[(TABLES >> 3) + 512 * level] = TABLES + 0x1000 * (level + 1) | 7
            for page in range(32):
                words[(TABLES + 0x3000 >> 3) + page] = page << 12 | 7
        cpu = self.cpus[width]
        while cpu.in_guest:
            cpu.run(Op.EXIT, 0, ExitReason.CPUID)
        cpu.vmclear(Vmcs(cpu.memory, 0x1000))
        cpu.vmptrld(0x1000)
        cpu.vmwrite_all(LONG_MODE_GUEST)
        cpu.vmwrite_all({Field.GUEST_CR3: TABLES, Field.MSR_BITMAP: MSR_BITMAP})
        return cpu

    def vmentry(self, v: Vector) -> Observed:
        cpu = self.cpu(v["w"])
        fields = {ENTRY_FIELDS[name]: value for name, value in entry_fields(v).items()}
        del fields[Field.VM_ENTRY_CONTROLS]
        page = fields[Field.VIRTUAL_APIC_ADDRESS]
        if not page & 0xFFF and not page >> v["w"]:
            fields[Field.VIRTUAL_APIC_ADDRESS] = VIRTUAL_APIC
        fields[Field.VM_EXIT_CONTROLS] |= LONG_MODE_GUEST[Field.VM_EXIT_CONTROLS]
        cpu.memory.u8[VIRTUAL_APIC + 0x80] = v["vtpr"]
        cpu.vmwrite_all(fields)
        try:
            exit = cpu.vmlaunch()
        except VmFail as failed:
            return {"k": "vmfail", "err": failed.error}
        if exit is not None:
            return {"k": "exit", "reason": exit.exit_reason, "q": exit.qualification}
        return {"k": "ok"} | ({"vppr": cpu.vppr, "pend": int(cpu.pending)} if v["sec"] and v["vid"] else {})

    def vapic(self, v: Vector) -> Observed:
        cpu = self.cpu(52)
        page, wanted = cpu.memory.u8[VIRTUAL_APIC : VIRTUAL_APIC + 4096], v["vppr"] if v["vid"] else 0xF0
        page[:] = 0
        page[0x80] = wanted
        deliver = v["op"] == "deliver"
        primary = v["iwe"] << 2 | v["cr8l"] << 19 | v["cr8s"] << 20 | v["tprs"] << 21 | 1 << 28 | 1 << 31
        bitmap = sum(int(text, 16) << 32 * i for i, text in enumerate(v.get("eoix", ())))
        cpu.vmwrite_all(
            {
                Field.PIN_BASED_CONTROLS: 1,
                Field.PRIMARY_CONTROLS: primary,
                Field.SECONDARY_CONTROLS: v["vaa"] | v["x2"] << 4 | v["arv"] << 8 | v["vid"] << 9,
                Field.VIRTUAL_APIC_ADDRESS: VIRTUAL_APIC,
                Field.APIC_ACCESS_ADDRESS: APIC_ACCESS,
                Field.TPR_THRESHOLD: v["thr"],
                Field.GUEST_INTERRUPT_STATUS: v["rvi"] | v["svi"] << 8,
                Field.GUEST_RFLAGS: 0x202 if deliver else 2,
            }
            | {Field(Field.EOI_EXIT_BITMAP_0 + 2 * i): bitmap >> 64 * i & (1 << 64) - 1 for i in range(4)}
        )
        try:
            exit = cpu.vmlaunch()
        except VmFail as failed:
            raise Unreachable("controls that VM entry refuses") from failed
        if exit is not None or (v["vid"] and cpu.vppr != v["vppr"]):
            raise Unreachable("a priority or a window that VM entry does not leave")
        if deliver and not cpu.pending:
            raise Unreachable("an interrupt that is not recognized")
        page[:] = list(page_of(v))  # the VMM, or a device, writes to the page while the guest runs
        before, recognized = bytes(page), cpu.pending
        seen = self.state(cpu, v, before, self.operate(cpu, v))
        if recognized and seen.get("pend"):  # by VM entry, where the vector began without: it may not have looked again
            seen["pend"] = expected(v)["pend"]
        return seen

    def operate(self, cpu: Cpu, v: Vector) -> Observed:
        value = np.array([int(v.get("data", "0"), 16)], np.uint64)
        value, op, size, addr = self.operation(v, value)
        came = cpu.run() if op is None else cpu.run(op, size, addr, data=value)
        match came:
            case Exit():
                when = "trap" if came.done else "fault"
                return {"k": "exit", "reason": came.reason, "q": came.qualification, "when": when}
            case GuestEvent(vector=vector, error_code=None):
                return {"k": "ok", "ivec": vector}
            case GuestEvent():
                return {"k": "exc", "vec": came.vector, "ec": came.error_code}
        if vmx_passes(v):
            return {"k": "passthru"}
        reads = v["op"] in ("rd", "rdmsr", "mov_from_cr8")
        return {"k": "ok"} | ({"data": int(value[0])} if reads and value is not None else {})

    def operation(self, v: Vector, value: Any) -> tuple[Any, int | None, int, int]:
        op = v["op"]
        if op == "deliver":
            return None, None, 0, 0
        if op in ("rd", "wr"):
            plain, event = (Op.READ, GuestOp.EVENT_READ) if op == "rd" else (Op.WRITE, GuestOp.EVENT_WRITE)
            code = event if v["inev"] else plain
            return (None if v["len"] > 8 else value), code, v["len"], APIC_ACCESS + v["off"]
        if op in ("mov_to_cr8", "mov_from_cr8"):
            return value, Op.CR8_WRITE if op == "mov_to_cr8" else Op.CR8_READ, v["reg"], int(v.get("data", "0"), 16)
        return value, Op.MSR_WRITE if op == "wrmsr" else Op.MSR_READ, 0, v["msr"] << 32

    def state(self, cpu: Cpu, v: Vector, before: bytes, seen: Observed) -> Observed:
        if v["vid"]:
            seen |= {"vppr": cpu.vppr, "pend": int(cpu.pending)}
            while cpu.in_guest:
                cpu.run(Op.EXIT, 0, ExitReason.CPUID)
            status = cpu.vmread(Field.GUEST_INTERRUPT_STATUS)
            seen |= {"rvi": status & 0xFF, "svi": status >> 8}
        after = bytes(cpu.memory.u8[VIRTUAL_APIC : VIRTUAL_APIC + 4096])
        seen["ch"] = {
            int(v["vapa"], 16) + at: int.from_bytes(after[at : at + 8], "little")
            for at in range(0, 4096, 8)
            if before[at : at + 8] != after[at : at + 8]
        }
        return seen


def vmx_passes(v: Vector) -> bool:
    """Is the operation one that the processor does not virtualize under these controls? It is done then, unseen."""
    op = v["op"]
    if op in ("rd", "wr"):
        return not v["vaa"]
    if op in ("mov_to_cr8", "mov_from_cr8"):
        return not v["tprs"]
    if op == "rdmsr":
        return not v["x2"] or v["msr"] >> 8 != 8 or not (v["arv"] or v["msr"] == 0x808)
    return not v["x2"] or not (v["msr"] == 0x808 or (v["vid"] and v["msr"] in (0x80B, 0x83F)))


INSTRUCTIONS = Instructions()
