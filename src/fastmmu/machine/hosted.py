"""What a machine of a host may be: its configuration, and how many vCPUs it has; the CPUs of a host, and its memory."""

from __future__ import annotations

from fastmmu._arguments import counted, shown, whole
from fastmmu.errors import ConfigError, OutOfMemoryError
from fastmmu.machine.config import Config
from fastmmu.machine.ranges import Ranges
from fastmmu.machine.topology import topology
from fastmmu.paging.memory import PhysicalMemory
from fastmmu.sizes import parse_bytes
from fastmmu.tlb.tlb import TLB

MOST_CPUS = 4096
MOST_VCPUS = 1024
_ROOM = 1 << 40  # bytes of address space that a host has where nothing else is said
_MOST = 1 << 46


def reserve(needed: int, memory: object) -> tuple[PhysicalMemory, Ranges]:
    """A host's memory, of which the machines at the start need so much.

    :raises ConfigError: a size that is none. :raises OutOfMemoryError: too much.
    """
    if needed > _MOST:
        raise OutOfMemoryError(
            f"{needed >> 30} GB of host memory are more than 46 bits of address; give the machines less by "
            "Config(memory=)"
        )
    if memory is not None:
        size = parse_bytes(memory) if isinstance(memory, str) else whole("memory", memory)
        if not 1 << 21 <= size <= _MOST:
            raise ConfigError(f"memory={shown(memory)}: a host has 2M..64T")
        size &= ~0x1FFFFF
        return PhysicalMemory(size), Ranges(size)
    size = max(needed, _ROOM)
    try:
        return PhysicalMemory(size), Ranges(size)
    except OutOfMemoryError:
        return PhysicalMemory(needed), Ranges(needed)


def with_count(vm: object) -> tuple[Config, int]:
    """A machine as ``Host`` takes it: (configuration, number of vCPUs)."""
    if isinstance(vm, Config):
        return vm, 1
    pair = vm if isinstance(vm, tuple) else ()
    if len(pair) != 2 or not isinstance(pair[0], Config):
        raise ConfigError(f"{shown(vm)}: a machine of a host is a Config, or (Config, number of vCPUs)")
    return pair[0], count_of(pair[1])


def machines_of(vms: list[object]) -> list[tuple[Config, int]]:
    """The machines at the start, each of which may be one of this host."""
    chosen = [with_count(vm) for vm in vms]
    if not chosen:
        raise ConfigError("no machine; a host has at least one, give a Config each")
    for config, count in chosen:
        check_fits(config, count, len(chosen) == 1)
    return chosen


def count_of(vcpus: object) -> int:
    """Number of vCPUs of a machine, from an argument."""
    count = whole("the number of vCPUs", vcpus)
    if not 1 <= count <= MOST_VCPUS:
        raise ConfigError(f"{counted(count)} vCPUs; a machine has 1..{MOST_VCPUS}")
    return count


def check_fits(config: Config, count: int, alone: bool = False) -> None:
    """May a machine have so many vCPUs? alone: it is the only one of its host, from the start."""
    if config.mmu == "native" and not alone:
        raise ConfigError(f"{config!r}: a native machine has the host for itself; use mmu='shadow' or 'ept'")
    if config.mmu == "native" and config.tpr is not None and count > 1:
        raise ConfigError(f"tpr={config.tpr!r}: APICs of several CPUs are those of guests; natively use tpr=None")
    most = {None: MOST_VCPUS, "patch": 16}.get(config.tpr, 255)
    if config.apic_id + count > most:
        raise ConfigError(
            f"tpr={config.tpr!r}: vCPUs up to number {config.apic_id + count - 1}; the guest's APICs, or its records "
            f"of the TPR, have room for 0..{most - 1}"
        )


def check_priced(config: Config, what: str) -> None:
    """May vCPUs of this configuration be priced one by one? Data caches count by physical CPU."""
    if config.caches is not None:
        raise ConfigError(
            f"caches={config.caches!r}: {what} prices each vCPU, and data caches count by physical CPU "
            "(Host.caches); leave them out, or run a Host"
        )


def check_vendor(config: Config, vendor: str) -> None:
    """May a machine be of a host whose processors are of this vendor?"""
    if config.vendor != vendor:
        raise ConfigError(
            f"vendor={config.vendor!r}: the processors of this host are those of its first machine, vendor={vendor!r}"
        )


def tlbs_of(config: Config, cpus: object) -> tuple[TLB, ...]:
    """A TLB for each CPU; hyperthreads of a core share what ``config.shared``, or the geometry, says.

    :param cpus: how many there are; None: as many as ``config.topology`` has, without one 1.
    :raises ConfigError: none, too many, or the topology has another number of them.
    """
    found = None if config.topology is None else topology(config.topology)
    if cpus is None:
        cpus = 1 if found is None else found.cpus
    n = whole("cpus", cpus)
    if not 1 <= n <= MOST_CPUS:
        raise ConfigError(f"cpus={counted(n)}: a host has 1..{MOST_CPUS} physical CPUs")
    if found is None:
        return tuple(TLB(config.geometry) for _ in range(n))
    if n != found.cpus:
        raise ConfigError(f"topology={found} has {found.cpus} CPUs, and there are {n}; give a topology of as many")
    cores = (TLB.hyperthreads(found.threads, config.geometry) for _ in range(found.packages * found.cores))
    return tuple(tlb for core in cores for tlb in core)
