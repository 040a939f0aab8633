"""Where virtual machines put their RAM: what a raw file of it leaves out, the hole for devices below 4 GB."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from fastmmu.errors import ConfigError

__all__ = ["MACHINES", "Machine", "parse_map", "placed"]

GB = 1 << 30
_FOUR = 4 * GB
_NUMBER = r"(?:0x)?([0-9a-fA-F_]+)"


class Machine(NamedTuple):
    """RAM of at least ``least`` bytes is cut at ``low``, and goes on at 4 GB."""

    said: str
    least: int
    low: int


MACHINES = {
    "i440fx": Machine("QEMU's pc, from 1.7 on", 7 * GB // 2, 3 * GB),
    "i440fx-old": Machine("QEMU's pc before 1.7", 7 * GB // 2, 7 * GB // 2),
    "q35": Machine("QEMU's q35", 11 * GB // 4, 2 * GB),
    "microvm": Machine("QEMU's microvm", 3 * GB, 3 * GB),
    "xen": Machine("Xen HVM", 15 * GB // 4, 15 * GB // 4),
    "vmware": Machine("VMware", 3 * GB, 3 * GB),
    "firecracker": Machine("Firecracker before 1.13", 13 * GB // 4, 13 * GB // 4),
    "cloud-hypervisor": Machine("Cloud Hypervisor", 3 * GB, 3 * GB),
}
"""By name, as `--machine` takes it."""


def placed(machine: str, nbytes: int) -> list[tuple[int, int, int]]:
    """(address, bytes, place in the file) of RAM of so many bytes.

    :raises ConfigError: no such machine.
    """
    if machine not in MACHINES:
        raise ConfigError(f"machine {machine!r} is none of {', '.join(MACHINES)}")
    row = MACHINES[machine]
    if nbytes < row.least or nbytes <= row.low:
        return [(0, nbytes, 0)]
    return [(0, row.low, 0), (_FOUR, nbytes - row.low, row.low)]


def parse_map(pieces: Sequence[str]) -> list[tuple[int, int, int]]:
    """(address, bytes, place in the file) of texts "PA=OFFSET:LENGTH", hexadecimal.

    :raises ConfigError: a text that is none.
    """
    found = []
    for text in pieces:
        match = re.fullmatch(rf"\s*{_NUMBER}={_NUMBER}:{_NUMBER}\s*", text)
        if match is None or len(text) > 80:
            raise ConfigError(
                f"{text[:80]!r} is no PA=OFFSET:LENGTH; three hexadecimal numbers, as in 100000000=c0000000:8000"
            )
        try:
            address, offset, nbytes = (int(word, 16) for word in match.groups())
        except ValueError as error:
            raise ConfigError(f"{text!r}: {error}") from error
        if nbytes == 0:
            raise ConfigError(f"{text!r} is empty; leave it out")
        found.append((address, nbytes, offset))
    return found
