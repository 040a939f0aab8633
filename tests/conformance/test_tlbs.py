"""Recorded operands and TLB answers through kernels and specification; and that the comparison can fail."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fastmmu import StateError
from fastmmu.cpu.inv_operands_py import EPT_VPID_CAP, check_invalidation
from fastmmu.exits import Completion
from fastmmu.reference.cpu import inv_operands as operands
from fastmmu.reference.tlb.invalidations import Tlb
from tests.conformance import tlbs, vectors

SAMPLES = tlbs.sets(vectors.sample_directory())
FULL = tlbs.sets(vectors.data_directory())
OWNERS = (tlbs.SPECIFICATION, tlbs.KERNELS)


def test_both_sets_have_a_sample() -> None:
    assert {vectors.set_name(path) for path in SAMPLES} == {"e_inv_operands", "e_tlb"}


@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.name)
@pytest.mark.parametrize("path", SAMPLES, ids=vectors.set_name)
def test_sample(owner: tlbs.Owner, path: Path) -> None:
    report = tlbs.run_set(owner, path)
    assert report.compared > 100
    assert report.mismatches == 0, "\n".join(report.examples)
    assert report.kept == report.may_keep, "nothing is forgotten that need not be"


@pytest.mark.skipif(not FULL, reason=f"skipped: no vectors in {vectors.data_directory().name}; set FASTMMU_VECTORS")
@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.name)
@pytest.mark.parametrize("path", FULL, ids=vectors.set_name)
def test_slice_of_the_full_set(owner: tlbs.Owner, path: Path) -> None:
    report = tlbs.run_set(owner, path, stride=vectors.slice_stride(path))
    assert report.mismatches == 0, "\n".join(report.examples)


# ---- the comparison itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["invlpg", "mov_cr3", "invpcid"])
def test_an_invalidation_left_out_is_a_mismatch(operation: str) -> None:
    class Forgetful(Tlb):
        pass

    setattr(Forgetful, operation, lambda *args: 0)
    owner = dataclasses.replace(tlbs.SPECIFICATION, tlb=lambda: Forgetful(tlbs.SMALL))
    path = next(path for path in SAMPLES if path.name.startswith("e_tlb"))
    report = tlbs.run_set(owner, path, examples=1000)
    owed = sum(v["op"] == operation and v["must_be_fresh"] for v in vectors.read(path))
    assert report.mismatches == owed >= 10
    assert all("stale answer" in example for example in report.examples)


@pytest.mark.parametrize("wrong", Completion)
def test_a_wrong_completion_is_a_mismatch(wrong: Completion) -> None:
    owner = dataclasses.replace(tlbs.KERNELS, check=lambda *args, **kwargs: wrong)
    path = next(path for path in SAMPLES if path.name.startswith("e_inv"))
    report = tlbs.run_set(owner, path)
    right = Counter(v["out"]["k"] for v in vectors.read(path))
    assert report.mismatches == report.compared - right[tlbs.WORDS.get(wrong, {}).get("k", "")]


# ---- operands: kernel and specification over every parameter ---------------------------------------------------

EDGES = (0, 1, 0xFFF, 0x1000, 0xFFFF, 0x10000, 1 << 47, (1 << 47) - 1, 0xFFFF << 47, 1 << 56, 0x1E, 0x5E, 0x26, 0x9E)
EDGES += (0x11E, 0x1_2345_6000 | 0x1E, 0x3F << 57, (1 << 64) - 1)
MODES = ("real", "v86", "protected", "compatibility", *["64-bit"] * 4)


def processor(random: Random) -> dict[str, Any]:
    caps = random.choice([EPT_VPID_CAP, EPT_VPID_CAP, EPT_VPID_CAP ^ 1 << random.randrange(64), random.getrandbits(64)])
    flags = ("pcide", "current_vmcs", "invpcid", "enable_invpcid", "invlpg_exiting")
    return {
        "caps": caps,
        "mode": random.choice(MODES),
        "vmx": random.choice(["off", "root", "root", "root", "non-root"]),
        "cpl": random.choice([0, 0, 0, 1, 3]),
        "maxphyaddr": random.choice([32, 36, 46, 52]),
        "la_bits": random.choice([48, 57]),
        **{flag: random.random() < 0.7 for flag in flags},
    }


def test_kernel_and_specification_end_alike_in_every_way() -> None:
    random, seen = Random(1), Counter[tuple[str, Completion]]()
    for _ in range(20_000):
        instruction = random.choice(["invept", "invvpid", "invpcid"])
        type = random.choice([0, 1, 2, 3, 4, 1 << 32, 1 << 32 | 1, random.getrandbits(64)])
        low, high = (random.choice([*EDGES, random.getrandbits(random.randrange(65))]) for _ in range(2))
        x = processor(random)
        ended = check_invalidation(instruction, type, (low, high), **x)
        assert ended == operands.check(instruction, operands.Executing(**x), type, (low, high)), (type, low, high, x)
        seen[instruction, ended] += 1
    vmx = set(Completion)
    pcid = vmx - {Completion.VMFAIL_VALID, Completion.VMFAIL_INVALID}
    assert seen.keys() == {(name, c) for name in ("invept", "invvpid") for c in vmx} | {("invpcid", c) for c in pcid}
    assert min(seen.values()) > 20


one = functools.partial(check_invalidation, "invvpid")


def test_the_order_of_the_checks() -> None:
    """tlb.md §5.1: #UD, VM exit, CPL, type, operand; INVPCID checks the CPL before it exits."""
    bad = (1 << 16, 1 << 60)
    assert one(9, bad, vmx="off", cpl=3) is Completion.INVALID_OPCODE
    assert one(9, bad, vmx="non-root", cpl=3) is Completion.VM_EXIT
    assert one(9, bad, cpl=3) is Completion.GENERAL_PROTECTION
    assert one(9, bad) is Completion.VMFAIL_VALID
    assert one(9, bad, current_vmcs=False) is Completion.VMFAIL_INVALID
    both = {"vmx": "non-root", "invlpg_exiting": True}
    assert check_invalidation("invpcid", 9, bad, cpl=3, **both) is Completion.GENERAL_PROTECTION
    assert check_invalidation("invpcid", 9, bad, **both) is Completion.VM_EXIT
    assert check_invalidation("invpcid", 2, (0, 0), **both, enable_invpcid=False) is Completion.INVALID_OPCODE


def test_the_register_has_32_bits_outside_64_bit_mode() -> None:
    assert one(1 << 32 | 1, (5, 0), mode="protected") is Completion.DONE
    assert one(1 << 32 | 1, (5, 0)) is Completion.VMFAIL_VALID


def test_parameters_that_no_processor_has_are_refused() -> None:
    for call in (
        lambda: check_invalidation("invlpgb", 0, (0, 0)),
        lambda: one(1, (5, 0), mode="smm"),
        lambda: one(1, (5, 0), vmx="maybe"),
        lambda: one(1, (5, 0), cpl=4),
        lambda: one(1, (5, 0), maxphyaddr=53),
        lambda: one(1, (5, 0), la_bits=64),
        lambda: one(-1, (5, 0)),
        lambda: one(1, (1 << 64, 0)),
    ):
        with pytest.raises(StateError, match=r"invlpgb|smm|maybe|4|53|64|-1|18446744073709551616"):
            call()
