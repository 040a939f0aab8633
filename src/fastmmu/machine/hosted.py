"""What a machine of a host may be: its configuration, and how many vCPUs it has."""

from __future__ import annotations

from fastmmu._arguments import counted, shown, whole
from fastmmu.errors import ConfigError
from fastmmu.machine.config import Config

MOST_VCPUS = 1024


def with_count(vm: object) -> tuple[Config, int]:
    """A machine as ``Host`` takes it: (configuration, number of vCPUs)."""
    if isinstance(vm, Config):
        return vm, 1
    pair = vm if isinstance(vm, tuple) else ()
    if len(pair) != 2 or not isinstance(pair[0], Config):
        raise ConfigError(
            f"{shown(vm)}: a machine of a host is a Config with mmu='shadow' or 'ept', or (Config, number of vCPUs)"
        )
    return pair[0], count_of(pair[1])


def count_of(vcpus: object) -> int:
    """Number of vCPUs of a machine, from an argument."""
    count = whole("the number of vCPUs", vcpus)
    if not 1 <= count <= MOST_VCPUS:
        raise ConfigError(f"{counted(count)} vCPUs; a machine has 1..{MOST_VCPUS}")
    return count


def check_fits(config: Config, count: int) -> None:
    """May a machine have so many vCPUs?"""
    if config.mmu == "native":
        raise ConfigError(f"{config!r}: a machine of a host is a Config with mmu='shadow' or 'ept'")
    most = {None: MOST_VCPUS, "patch": 16}.get(config.tpr, 255)
    if config.apic_id + count > most:
        raise ConfigError(
            f"tpr={config.tpr!r}: vCPUs up to number {config.apic_id + count - 1}; the guest's APICs, or its records "
            f"of the TPR, have room for 0..{most - 1}"
        )


def check_vendor(config: Config, vendor: str) -> None:
    """May a machine be of a host whose processors are of this vendor?"""
    if config.vendor != vendor:
        raise ConfigError(
            f"vendor={config.vendor!r}: the processors of this host are those of its first machine, vendor={vendor!r}"
        )
