"""Which processors there are: packages of cores, cores of hyperthreads."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from fastmmu._arguments import shown
from fastmmu.errors import ConfigError

__all__ = ["Topology", "topology"]

MOST_CPUS = 4096
MOST_THREADS = 8


class Topology(msgspec.Struct, frozen=True):
    """Packages, cores of each, hyperthreads of each core; written "2x4x2".

    CPUs are numbered as their APIC ids are (SDM vol. 3A, "Hierarchical Mapping of Shared Resources"): the hyperthreads
    of a core follow each other, then the cores of a package.

    Threads: immutable; share it.
    """

    packages: int = 1
    cores: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        for name, most in (("packages", MOST_CPUS), ("cores", MOST_CPUS), ("threads", MOST_THREADS)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ConfigError(f"topology: {name}={shown(value)} is outside 1..{most}; write 1x2x2, say")
        if self.cpus > MOST_CPUS:
            raise ConfigError(f"topology={self}: {self.cpus} CPUs are more than {MOST_CPUS}")

    def __str__(self) -> str:
        return f"{self.packages}x{self.cores}x{self.threads}"

    @property
    def cpus(self) -> int:
        """Number of logical processors."""
        return self.packages * self.cores * self.threads

    def place(self, cpu: int) -> tuple[int, int, int]:
        """(package, core of it, hyperthread of that) of a CPU."""
        core, thread = divmod(cpu, self.threads)
        return *divmod(core, self.cores), thread


def topology(given: Any) -> Topology:
    """A topology from text such as "1x2x2", or as it is.

    :raises ConfigError: something else.
    """
    if isinstance(given, Topology):
        return given
    words = given.lower().split("x") if isinstance(given, str) else []
    if len(words) != 3 or not all(re.fullmatch(r"[0-9]{1,4}", word.strip()) for word in words):
        raise ConfigError(f"topology={shown(given)}: write packages x cores x threads, as in 1x2x2")
    return Topology(*(int(word) for word in words))
