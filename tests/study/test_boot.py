"""A guest from real mode to 5-level paging and back, in every scheme: `fastmmu boot` prints what is checked here."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from fastmmu import ConfigError, GuestState, Machine, reference
from fastmmu.cli.main import main
from fastmmu.reference.kvm import modes
from fastmmu.reference.kvm.modes import Refused, Registers, Scheme
from fastmmu.study.boot import BOOT, SCHEMES, Boot, Instruction, boot, broken, execute
from fastmmu.study.boot.table import boot_rows, boot_table

MEMORY = 64 << 20
RUNS = [("native", False), *((name, vpid) for name in SCHEMES if name != "native" for vpid in (False, True))]
KINDS = {
    "native": Scheme.NATIVE,
    "shadow": Scheme.SHADOW,
    "shadow-6.1": Scheme.SHADOW,
    "ept": Scheme.EPT,
    "ept-6.1": Scheme.EPT,
    "unrestricted": Scheme.UNRESTRICTED,
}


class Specification:
    """The program on the executable specification: registers, walks, memory, and the exits that each scheme owes."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.memory = reference.SparseMemory()
        self.registers = Registers(0x6000_0010, 0, 0, 0)
        self.touched: set[int] = set()  # guest-physical pages that the processor has accessed
        self.exits: Counter[str] = Counter()

    def touch(self, gpa: int) -> None:
        if self.scheme.ept and gpa >> 12 not in self.touched:
            self.touched.add(gpa >> 12)
            self.exits["ept_violation"] += 1

    def run(self, instruction: Instruction) -> Any:
        name, *operands = instruction
        r = self.registers
        if name in ("access", "store"):
            return self.access(name, *operands)
        if name == "invlpg":
            if self.scheme is Scheme.SHADOW or modes.hardware(r, self.scheme).vm86:
                self.exits["invlpg"] += 1
            return ""
        if name == "read":
            reason = modes.exit_of(r, self.scheme, f"read {operands[0]}")
            self.exits.update([reason.name.lower()] if reason is not None else [])
            return getattr(r, operands[0])
        register, value = name, operands[0] if operands else 0
        reason = modes.exit_of(r, self.scheme, name, value)
        self.exits.update([reason.name.lower()] if reason is not None else [])
        if name == "clts":
            register, value = "cr0", r.cr0 & ~8
        elif name == "lmsw":
            register, value = "cr0", r.cr0 & ~0xE | value
        try:
            self.registers = modes.write(r, register, value, self.memory)
        except Refused:
            return None
        finally:
            loads = self.registers.pae_paging if register == "cr3" else register == "cr4" and self.registers.pae_paging
            if loads and reason is None and self.scheme.ept:
                self.touch(self.registers.cr3 & 0xFFFF_FFE0)
        return ""

    def access(self, name: str, la: int, *operands: Any) -> Any:
        kind, user, size = (*operands, 0) if name == "access" else ("w", False, operands[1])
        r = self.registers
        if modes.hardware(r, self.scheme).cr3 == modes.IDENTITY_MAP:
            self.touch(modes.IDENTITY_MAP)
        state = reference.State(
            cr0=r.cr0,
            cr3=r.cr3,
            cr4=r.cr4,
            efer=r.efer,
            pdpte=r.pdpte,
            maxphyaddr=46,
            cpl=3 if user else 0,  # type: ignore[arg-type]
        )
        outcome = reference.walk(self.memory, state, la, kind, write=True)
        for step in outcome.steps:
            self.touch(step.hpa)
        if isinstance(outcome, reference.PageFault):
            return None, outcome.error_code, outcome.cr2
        assert isinstance(outcome, reference.Mapped)
        if size == 8:
            self.memory.write64(outcome.gpa, operands[0])
        elif size:
            word, shift = self.memory.read64(outcome.gpa & ~7), 8 * (outcome.gpa & 4)
            self.memory.write64(outcome.gpa & ~7, word & ~(0xFFFF_FFFF << shift) | operands[0] << shift)
        return outcome.gpa, None, None


@pytest.mark.parametrize(("scheme", "vpid"), RUNS)
def test_every_step_is_what_the_specification_says(scheme: str, vpid: bool) -> None:
    """Outcomes, registers, hardware, invariants; exits by reason, those of page faults under shadow paging aside."""
    run = boot(scheme, vpid=vpid)
    spec = Specification(KINDS[scheme])
    for done, step in zip(run.steps, BOOT, strict=True):
        spec.exits.clear()
        for instruction, came in zip(step.instructions, done.outcomes, strict=True):
            want = spec.run(instruction)
            if want is None:
                assert "#GP" in came or "reserved bits" in came, (step.name, instruction)
            else:
                assert came == want, (step.name, instruction)
        r = spec.registers
        assert (done.guest["cr0"], done.guest["cr3"], done.guest["cr4"], done.guest["efer"]) == (
            r.cr0, r.cr3, r.cr4, r.efer
        )  # fmt: skip
        assert done.broken == ()
        table = modes.hardware(r, spec.scheme)
        assert done.hardware["vm86"] == table.vm86
        assert done.hardware["cr3_load_exiting"] == table.cr3_exits
        if spec.scheme is not Scheme.SHADOW:
            assert done.hardware["cr3"] == table.cr3
            assert done.exits == dict(spec.exits), step.name
        else:
            others = {name: n for name, n in done.exits.items() if name != "exception_nmi"}
            spec.exits.pop("exception_nmi", None)
            assert others == dict(spec.exits), step.name


@pytest.mark.parametrize("kvm", ["5.10", "6.12"])
@pytest.mark.parametrize("scheme", ["native", "shadow", "ept", "unrestricted"])
def test_a_guest_boots_alike_on_every_version(scheme: str, kvm: str) -> None:
    """Unrestricted guest is the scheme's, whatever the version would choose."""
    run, native = boot(scheme, kvm=kvm), boot()
    assert run.config.kvm == kvm
    assert [step.outcomes for step in run.steps] == [step.outcomes for step in native.steps]
    assert not any(step.broken for step in run.steps)
    if scheme == "ept":
        assert any(step.hardware["vm86"] for step in run.steps)
        with pytest.raises(ConfigError, match=r"its name says 6\.1; use ept"):
            boot("ept-6.1", kvm=kvm)


def test_memory_at_the_end_is_the_same() -> None:
    """Tables with their A and D flags, and data."""
    spec = Specification(Scheme.NATIVE)
    for step in BOOT:
        for instruction in step.instructions:
            spec.run(instruction)
    for scheme in SCHEMES:
        machine = started(scheme)
        for step in BOOT:
            for instruction in step.instructions:
                execute(machine, instruction)
        for low in (0x7000, *range(0x1_0000, 0x1_5000, 0x1000), *range(0x2_0000, 0x2_5000, 0x1000), 0x10_0000):
            want = [spec.memory.read64(gpa) for gpa in range(low, low + 0x1000, 8)]
            assert machine.guest_memory.u64[low >> 3 : (low >> 3) + 512].tolist() == want, (scheme, hex(low))


def started(scheme: str) -> Machine:
    config = boot(scheme, program=()).config
    state = GuestState(cr0=0x6000_0010, cr3=0, cr4=0, efer=0, maxphyaddr=46)
    return Machine(config, guest_kernel=False, state=state)


@pytest.mark.parametrize("unsync", [False, True])
def test_unsync_changes_nothing_that_the_guest_sees(unsync: bool) -> None:
    want = [step.outcomes for step in boot().steps]
    for scheme in ("shadow", "shadow-6.1"):
        run = boot(scheme, unsync=unsync)
        assert [step.outcomes for step in run.steps] == want
        assert not any(step.broken for step in run.steps)


def test_an_invariant_that_fails_is_told() -> None:
    """The claims are about the machine: with the wrong scheme in mind they do not hold."""

    class Other:
        def __init__(self, machine: Machine, **hardware: int) -> None:
            self.config, self.state, self.hardware = machine.config, machine.state, machine.hardware | hardware

    machine = started("ept")
    assert broken(machine) == []
    for name, value, says in [
        ("cr3", 0, "identity table"),
        ("cr3_load_exiting", False, "CR3 does not exit"),
        ("cr4", 0x2031, "PAE is on"),
        ("cr0", 0x31, "PE or PG is off"),
        ("vm86", False, "virtual-8086"),
    ]:
        assert says in " ".join(broken(Other(machine, **{name: value})))  # type: ignore[arg-type]
    paging = started("ept")
    for instruction in (("cr3", 0x1_0000), ("cr0", 1), ("cr0", 0x8000_0001)):
        execute(paging, instruction)
    assert broken(paging) == []
    assert "CR3 is not the guest's" in " ".join(broken(Other(paging, cr3=0)))  # type: ignore[arg-type]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "--schemes", "ept", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["steps"]
    assert [row["name"] for row in rows] == [step.name for step in BOOT]
    assert rows == boot_rows([boot("ept")])
    assert main(["boot", "--schemes", "native,unrestricted"]) == 0
    text = capsys.readouterr().out
    assert main(["boot", "--schemes", "shadow", "--kvm", "6.12", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == boot_rows([boot("shadow", kvm="6.12")])
    assert main(["boot", "--schemes", "shadow-6.1", "--kvm", "6.12"]) == 2
    assert "its name says 6.1" in capsys.readouterr().err
    assert "unrestricted: a guest from real mode" in text
    assert text.count("5-level paging  ") >= 2


def test_a_broken_invariant_stands_in_the_table() -> None:
    run = boot("ept", program=BOOT[:1])
    done = run.steps[0]
    wrong = Boot(run.scheme, run.config, (type(done)(**{**vars(done), "broken": ("PG=0: CR3 does not exit",)}),))
    assert "real mode: PG=0: CR3 does not exit" in boot_table(wrong)
    assert boot_rows([wrong])[0]["broken"] == 1
