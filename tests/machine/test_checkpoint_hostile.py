"""Checkpoints that are none: damaged, of another version, made to harm. Refused in one line, or a machine that runs."""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fastmmu import Config, FastmmuError, Host, Kvm, Machine, Policy
from fastmmu.errors import CheckpointError
from fastmmu.machine.checkpoint import machines
from fastmmu.machine.checkpoint.container import write_container
from fastmmu.machine.checkpoint.machines import Stored, machine_of, stored
from fastmmu.ops import Op
from tests.support.checkpoints import CONFIGS, events, mutated

MANY = int(os.environ.get("FASTMMU_EXAMPLES", "12"))


def taken(found: Stored) -> Machine | None:
    """The machine; None: refused, in one line."""
    said = ""
    try:
        return machine_of(found)
    except CheckpointError as error:
        said = str(error)
    assert said
    assert "\n" not in said
    return None


@pytest.mark.parametrize("name", CONFIGS)
def test_numbers_that_no_machine_has_do_no_harm(name: str) -> None:
    """Hashes are right, as those of somebody who makes such a file: each is refused, or its machine runs."""
    rng, config = np.random.default_rng(0), CONFIGS[name]
    columns = events(rng, 2000, config)
    machine = Machine(config)
    machine.run(*(column[:1500] for column in columns))
    found = stored(machine)
    refused = 0
    for _ in range(MANY):
        other = taken(mutated(rng, found))
        if other is None:
            refused += 1
            continue
        with contextlib.suppress(FastmmuError):
            other.run(*(column[1500:] for column in columns), None, 1500)
            if other.vmm is not None:
                other.vmm.swap_out(0, 3)
                other.vmm.start_dirty_log(0)
                other.run(*(column[:300] for column in columns), None, 2000)
                other.vmm.dirty_log(0)
        other.counters(), other.tlb.counters(), other.exit_log()
        stored(other)
    assert refused


@pytest.mark.parametrize("name", ["native", "shadow-6.1", "ept-thp", "ept-high"])
def test_tables_of_the_guest_that_lead_anywhere(name: str) -> None:
    """Of a checkpoint, or written by who has the memory."""
    rng, config = np.random.default_rng(1), CONFIGS[name]
    columns = events(rng, 3000, config)
    columns[0][::50] = np.where(columns[0][::50] < Op.SWITCH, Op.UNMAP, columns[0][::50])
    for _ in range(MANY):
        machine = Machine(config)
        machine.run(*(column[:1500] for column in columns))
        words = machine.memory.u64
        used = np.flatnonzero(words[: 1 << 20])
        at = rng.choice(used, 30)
        words[at] ^= np.uint64(1) << rng.integers(12, 52, 30).astype(np.uint64)
        with contextlib.suppress(FastmmuError):
            machine.run(*(column[1500:] for column in columns), None, 1500)


def saved(path: Path, config: Config | None = None) -> Path:
    Machine(config or Config(memory="64M", mmu="ept")).save(path)
    return path


def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path / "c")
    whole = path.read_bytes()
    rng = np.random.default_rng(2)
    for i in range(150):
        data = bytearray(whole)
        if i % 3 == 0:
            data = data[: int(rng.integers(len(data)))]
        else:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        said, machine = "", None
        try:
            machine = Machine.from_checkpoint(path)
        except CheckpointError as error:
            said = str(error)
        if machine is None:
            assert said.startswith(str(path))
            assert "\n" not in said
        else:  # a bit of the archive's own that says nothing
            assert stored(machine).header == stored(Machine(Config(memory="64M", mmu="ept"))).header


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2"),
        ({"version": "0.0.9"}, "of fastmmu '0.0.9'"),
        ({"names": []}, "words"),
        ({"config": {"mmu": "epd"}}, "damaged"),
        ({"config": {"vmm": 5}}, "damaged"),
        ({"state": {"cr0": -1}}, "cr0"),
        ({"state": {"cr9": 1}}, "damaged"),
        ({"slots": [[0, 1]]}, "multiples of 4096"),
        ({"slots": [[1 << 40, 1 << 60]]}, "MemorySlot size"),
        ({"policy": "os:system"}, "its policy is os:system"),
        ({"vmm": "os:system"}, "its VMM is os:system"),
        ({"kernel": False}, "damaged"),
        ({"extra": 1}, "damaged"),
    ],
)  # fmt: skip
def test_text_that_is_none(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    found = stored(Machine(Config(memory="64M", mmu="ept")))
    text = msgspec.to_builtins(found.header) | change
    write_container(tmp_path / "c", msgspec.json.encode(text), found.arrays)
    with pytest.raises(CheckpointError, match=said) as caught:
        Machine.from_checkpoint(tmp_path / "c")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"PK", b"\0" * 4096, b"{}", b"\x93NUMPY\x01\0"])
def test_other_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "c").write_bytes(data)
    with pytest.raises(CheckpointError, match="no checkpoint, or damaged"):
        Machine.from_checkpoint(tmp_path / "c")
    with zipfile.ZipFile(tmp_path / "c", "w") as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(CheckpointError, match="no checkpoint, or damaged"):
        Machine.from_checkpoint(tmp_path / "c")
    with pytest.raises(FileNotFoundError):
        Machine.from_checkpoint(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        Machine.from_checkpoint(tmp_path)


def test_arrays_of_objects_and_of_other_types(tmp_path: Path) -> None:
    found = stored(Machine(Config(memory="64M")))
    for array in (np.zeros(3), np.zeros((2, 2), np.uint64), np.array([b"x"])):
        broken = Stored("", found.header, {**found.arrays, "tlb.c": array})
        with pytest.raises(CheckpointError):
            machine_of(broken)


def test_a_file_that_is_there_stays_where_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "c")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        saved(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["c"]


# ---- what cannot be saved ----------------------------------------------------------------------------------------


class Counting(Policy):
    def __init__(self) -> None:
        self.seen = 0

    def on_cpuid(self, machine: Machine, exit: Any) -> Any:
        self.seen += 1
        return machine.default()


class Kept(Counting):
    def save_state(self) -> Any:
        return {"seen": self.seen}

    def load_state(self, state: Any) -> None:
        self.seen = state["seen"]


class Quiet(Policy):
    def on_cpuid(self, machine: Machine, exit: Any) -> Any:
        return machine.default()


class Mine(Kvm):
    def handle(self, vcpu: Any) -> Any:
        self.last = vcpu.exit.reason
        return super().handle(vcpu)


def test_policies_that_keep_state_are_refused_by_name(tmp_path: Path) -> None:
    config = Config(memory="64M", mmu="ept")
    with pytest.raises(CheckpointError, match=r"Counting keeps seen.*give it save_state"):
        Machine(config, policy=Counting()).save(tmp_path / "c")
    machine = Machine(config, policy=Kept())
    machine.run(np.array([Op.EXIT], np.uint8), np.zeros(1, np.uint8), np.array([10], np.uint64))
    machine.save(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"its policy is .*Kept, not none"):
        Machine.from_checkpoint(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"its policy is .*Kept, not .*Quiet"):
        Machine.from_checkpoint(tmp_path / "c", policy=Quiet())
    other = Machine.from_checkpoint(tmp_path / "c", policy=Kept())
    assert other.policy.seen == 1
    Machine(config, policy=Quiet()).save(tmp_path / "c")
    assert isinstance(Machine.from_checkpoint(tmp_path / "c", policy=Quiet()).policy, Quiet)


def test_a_vmm_of_ones_own(tmp_path: Path) -> None:
    machine = Machine(Config(memory="64M", mmu="ept", vmm=Mine))
    machine.save(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"its VMM is .*Mine"):
        Machine.from_checkpoint(tmp_path / "c")
    assert Machine.from_checkpoint(tmp_path / "c", vmm=Mine).config.vmm is Mine
    machine.run(np.zeros(1, np.uint8), np.zeros(1, np.uint8), np.zeros(1, np.uint64))
    with pytest.raises(CheckpointError, match=r"Mine keeps last.*give it save_state"):
        machine.save(tmp_path / "c")


def test_machines_of_a_host_are_refused(tmp_path: Path) -> None:
    host = Host([Config(memory="64M", mmu="ept")])
    with pytest.raises(CheckpointError, match="a machine of a Host"):
        host.machines[0].save(tmp_path / "c")


def test_equal_machines_are_equal_files(tmp_path: Path) -> None:
    assert saved(tmp_path / "a").read_bytes() == saved(tmp_path / "b").read_bytes()
    assert np.load(tmp_path / "a")["words"].dtype == np.uint64
    assert machines.FORMAT == 1
