"""Images of physical memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmmu
from fastmmu.image import from_pages, open_raw, read_guest

SAMPLE = Path(__file__).parents[1] / "data" / "guests"


def pages(n: int) -> np.ndarray:
    return np.arange(n * 4096, dtype=np.uint64).astype(np.uint8).reshape(n, 4096)


def test_pages_lie_where_their_frames_say() -> None:
    given = pages(2)
    memory = from_pages([7, 2], given)
    assert memory.nbytes == 8 * 4096
    assert np.array_equal(memory.u8[7 << 12 :], given[0])
    assert np.array_equal(memory.u8[2 << 12 : 3 << 12], given[1])
    assert not memory.u8[: 2 << 12].any()
    memory.u8[:] = 0
    assert given.any(), "the pages are copied"
    assert from_pages(np.zeros(0, np.uint64), np.zeros((0, 4096), np.uint8), 64).nbytes == 64


def test_a_large_address_space_is_cheap() -> None:
    memory = from_pages(np.array([1 << 27], np.uint64), pages(1), 1 << 40)
    assert memory.nbytes == 1 << 40
    assert memory.u8[(1 << 39) + 5] == 5


@pytest.mark.parametrize(
    ("pfn", "contents", "nbytes", "match"),
    [
        ([1, 1], pages(2), None, "0x1 is given more than once"),
        ([1], pages(2), None, r"uint8\[1, 4096\], not uint8\[2, 4096\]"),
        ([1], pages(1).astype(np.int8), None, "int8"),
        ([1.0], pages(1), None, "float64"),
        ([[1]], pages(1), None, r"integers\[n\]"),
        ([-1], pages(1), None, "-0x1 lies outside"),
        ([4], pages(1), 4 * 4096, "0x4 lies outside memory of 0x4000 bytes"),
        (np.zeros(0, np.int64), np.zeros((0, 4096), np.uint8), None, "how large"),
    ],
)
def test_bad_pages_are_named(pfn: Any, contents: Any, nbytes: int | None, match: str) -> None:
    with pytest.raises(fastmmu.ConfigError, match=match):
        from_pages(pfn, contents, nbytes)


def test_a_guest() -> None:
    guest = read_guest(SAMPLE / "l4_user")
    assert (guest.name, guest.state.mode.name, guest.state.cpl) == ("l4_user", "LEVEL_4", 3)
    assert guest.memory.nbytes == guest.meta["ram_bytes"]
    assert set(guest.expected) > {"va", "pa", "page_size", "flags"}
    va = guest.expected["va"]
    assert np.array_equal(
        fastmmu.translate(guest.memory, guest.state.replace(cpl=0, ac=1), va).pa, guest.expected["pa"]
    )


def test_pdpte_registers_lack_the_bit_that_qemu_set() -> None:
    guest = read_guest(SAMPLE / "pae_user")
    table = guest.memory.u64[guest.state.cr3 >> 3 :][:4]
    assert guest.state.pdptes == tuple(int(entry) & ~0x20 for entry in table)
    assert any(int(entry) & 0x20 for entry in table)


def copy(tmp_path: Path, **changes: Any) -> Path:
    place = tmp_path / "guest"
    place.mkdir()
    meta = json.loads((SAMPLE / "l4_user" / "meta.json").read_text()) | changes
    (place / "meta.json").write_text(json.dumps({name: value for name, value in meta.items() if value is not None}))
    (place / "mem.npz").write_bytes((SAMPLE / "l4_user" / "mem.npz").read_bytes())
    return place


def test_a_guest_without_expectations(tmp_path: Path) -> None:
    guest = read_guest(copy(tmp_path, name=None, ram_bytes=4096, qemu_cmd="qemu -cpu max,phys-bits=46 -m 1"))
    assert (guest.name, guest.expected, guest.state.maxphyaddr) == ("guest", {}, 46)
    assert guest.memory.nbytes > 4096, "as large as the pages need"
    assert read_guest(SAMPLE / "l4_user").state.maxphyaddr == 40


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"cr3": None}, "needs the integer 'cr3'"),
        ({"ram_bytes": "1M"}, "'ram_bytes', has '1M'"),
        ({"cr0": True}, "cr0"),
    ],
)
def test_bad_registers_are_named(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(fastmmu.ConfigError, match=match):
        read_guest(copy(tmp_path, **changes))


def test_bad_files_are_named(tmp_path: Path) -> None:
    place = copy(tmp_path)
    (place / "mem.npz").write_bytes(b"PK no")
    with pytest.raises(fastmmu.ConfigError, match=r"mem\.npz: not an \.npz file"):
        read_guest(place)
    np.savez(place / "mem.npz", pfn=np.zeros(1, np.uint64))
    with pytest.raises(fastmmu.ConfigError, match="needs the arrays pfn and pages"):
        read_guest(place)
    (place / "meta.json").write_text("{")
    with pytest.raises(fastmmu.ConfigError, match=r"meta\.json: not JSON"):
        read_guest(place)
    with pytest.raises(FileNotFoundError):
        read_guest(tmp_path / "none")


def test_a_raw_image_is_never_written_to(tmp_path: Path) -> None:
    path = tmp_path / "memory.raw"
    path.write_bytes(bytes(range(16)))
    assert not open_raw(path).writable
    memory = open_raw(path, writable=True)
    memory.write64(0, 0)
    assert memory.read64(0) == 0
    assert path.read_bytes() == bytes(range(16))
    path.write_bytes(b"")
    with pytest.raises(fastmmu.ConfigError, match="holds 0 bytes"):
        open_raw(path)
    path.write_bytes(b"abc")
    with pytest.raises(fastmmu.ConfigError, match=r"memory\.raw: .*multiple of 8"):
        open_raw(path)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("mem.npz", lambda data: data[:5] + data[6:]),
        ("mem.npz", lambda data: data[:200] + b"\xff" * 50 + data[250:]),
        ("mem.npz", lambda data: b"PK"),
        ("meta.json", lambda data: b"[" * 200_000),
    ],
)
def test_a_recorded_guest_that_is_damaged(name: str, spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    guest = shutil.copytree(SAMPLE / "pae_user", tmp_path / "guest")
    (guest / name).write_bytes(spoil((guest / name).read_bytes()))
    with pytest.raises(fastmmu.ConfigError, match=rf"{name}: not "):
        read_guest(guest)
