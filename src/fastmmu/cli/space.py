"""Options that name an address space: memory, from a recorded guest or an image, and the registers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmmu.cli import options as shared
from fastmmu.cli import terminal
from fastmmu.errors import ConfigError

if TYPE_CHECKING:
    from fastmmu.paging.memory import PhysicalMemory
    from fastmmu.paging.state import GuestState, Npt

__all__ = [
    "MEMORY",
    "add_image",
    "add_npt",
    "add_registers",
    "eptp_of",
    "memory_and_state",
    "memory_of",
    "say_if_empty",
    "state_of",
]

MEMORY = (
    "a recorded guest (a directory with meta.json and mem.npz), or an image of physical memory: an ELF core, LiME, "
    "AVML, kdump, a Windows crash dump, .vmem, raw; also .zst, .gz, .xz, .bz2, .lz4, .sz"
)

_REGISTERS = ("cr0", "cr3", "cr4", "efer", "pdptes", "pkru", "maxphyaddr")


def add_image(parser: argparse.ArgumentParser) -> Any:
    """How a file is taken; returns the group."""
    image = parser.add_argument_group("how a file is taken (by its first bytes; what it says itself comes first)")
    image.add_argument("--format", choices=("raw",), help="raw memory, whatever its first bytes are")
    image.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="PA=OFFSET:LENGTH",
        help="raw memory that lies in parts: where one of them is (hexadecimal; once for each)",
    )
    image.add_argument(
        "--machine",
        metavar="NAME",
        help="raw memory of a virtual machine of more than 2 GB, without the hole below 4 GB: q35, i440fx, i440fx-old, "
        "microvm, xen, vmware, firecracker, cloud-hypervisor",
    )
    return image


def add_registers(parser: argparse.ArgumentParser) -> Any:
    """The registers, and how a file is taken; returns the group of the registers."""
    register = shared.hexadecimal
    image = add_image(parser)
    image.add_argument(
        "--cpu", type=shared.count(0), metavar="N", help="the registers of CPU N that the file holds (0)"
    )
    state = parser.add_argument_group("registers (hexadecimal; by default those that the guest or the file holds)")
    state.add_argument("--cr3", type=register, metavar="CR3", help="root of the guest's tables")
    state.add_argument(
        "--eptp", type=_or_none, metavar="EPTP", help="EPT pointer, as in the VMCS: root | 1e; none: no EPT"
    )
    add_npt(state)
    state.add_argument("--cr0", type=register, metavar="CR0", help="default: 80050033, paging and WP on")
    state.add_argument("--cr4", type=register, metavar="CR4", help="default: a0, PAE and PGE on")
    state.add_argument("--efer", type=register, metavar="EFER", help="default: d01, long mode and NX on")
    state.add_argument(
        "--pdptes",
        type=_four,
        metavar="A,B,C,D",
        help="the four PDPTE registers of PAE paging; default: loaded from memory at CR3",
    )
    state.add_argument(
        "--maxphyaddr", type=int, metavar="M", help="physical-address width in bits, 32..52 (decimal; 52)"
    )
    return state


def add_npt(group: Any) -> None:
    """The root of AMD's nested page tables, in the place of an EPT pointer."""
    group.add_argument(
        "--npt", type=shared.hexadecimal, metavar="NCR3", help="root of AMD's nested page tables, as in the VMCB"
    )
    group.add_argument("--npt-levels", type=int, choices=(4, 5), help="their levels (4; 5: the host has CR4.LA57)")


NONE = -1
"""What `--eptp none` says, where to say nothing may mean another thing."""


def _or_none(text: str) -> int:
    return NONE if text.strip().lower() == "none" else shared.hexadecimal(text)


def eptp_of(options: argparse.Namespace, otherwise: int | None = None) -> int | Npt | None:
    """The EPT pointer that was given, or AMD's nested page tables; `otherwise`: where none was."""
    given: int | None = options.eptp
    if options.npt is None:
        if options.npt_levels is not None:
            raise ConfigError("--npt-levels needs --npt too: where the tables start")
        return otherwise if given is None else None if given == NONE else given
    if given is not None:
        raise ConfigError("--npt is AMD's and --eptp Intel's; give one of them")
    from fastmmu.paging.state import Npt

    return Npt(options.npt, levels=options.npt_levels or 4, maxphyaddr=getattr(options, "maxphyaddr", None) or 52)


def _four(text: str) -> list[int]:
    values = [shared.hexadecimal(word) for word in text.split(",")]
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is {len(values)} values; give four, separated by commas")
    return values


def memory_and_state(
    place: str, options: argparse.Namespace, *, writable: bool = False, **others: Any
) -> tuple[PhysicalMemory, GuestState, str]:
    """Memory and registers of a recorded guest or an image, with the registers that the options give; and what it is,
    in words, where that is no matter of course.

    `writable`: the memory may be written, and nobody else sees that. `others`: more registers that are given.
    """
    from fastmmu.image import open_image, read_guest

    if Path(place).is_dir():
        _refuse_for_guests(options)
        guest = read_guest(place)
        own = dict(guest.state.registers)
        if any(getattr(options, name) is not None for name in ("cr0", "cr3", "cr4", "efer")):
            own["pdptes"] = None  # the recorded ones are those of its own CR3
        return guest.memory, state_of(options, own, **others), ""
    if not Path(place).exists():
        raise FileNotFoundError(2, "no such file; name a recorded guest or an image of physical memory", place)
    image = open_image(place, format=options.format, map=options.map, machine=options.machine, writable=writable)
    said = "" if image.format == "raw" else image.said
    if options.cpu is not None or image.cpus:
        return image.memory, state_of(options, image.registers(options.cpu or 0), **others), said
    if options.cr3 is None:
        kind = "a raw image" if image.format == "raw" else "an image without registers"
        raise ConfigError(
            f"{place} is {kind}, which needs --cr3 too: where the tables start; `fastmmu roots` looks for that"
        )
    return image.memory, state_of(options, {}, **others), said


def memory_of(place: str, options: argparse.Namespace) -> tuple[PhysicalMemory, str]:
    """Memory of a recorded guest or an image, whose registers are no matter; and what it is, in words."""
    from fastmmu.image import open_image, read_guest

    if Path(place).is_dir():
        _refuse_for_guests(options)
        return read_guest(place).memory, ""
    image = open_image(place, format=options.format, map=options.map, machine=options.machine)
    return image.memory, "" if image.format == "raw" else image.said


def _refuse_for_guests(options: argparse.Namespace) -> None:
    for name in ("format", "map", "machine", "cpu"):
        if getattr(options, name, None) not in (None, []):
            raise ConfigError(f"--{name} is for files; a recorded guest says itself where its memory lies")


def state_of(options: argparse.Namespace, own: dict[str, Any], **others: Any) -> GuestState:
    """The registers `own`, in their place those that the options give, and `others`."""
    from fastmmu.paging.state import GuestState

    given = {name: getattr(options, name, None) for name in _REGISTERS}
    return GuestState(**{**own, **{name: value for name, value in given.items() if value is not None}, **others})


def say_if_empty(memory: PhysicalMemory, state: GuestState, eptp: int | Npt | None) -> None:
    """Say on standard error that the root table has no present entry, and what that may mean."""
    from fastmmu.image.roots import empty_root

    where = empty_root(memory, state, eptp)
    if where:
        terminal.complain(
            f"{where} has no present entry: nothing is mapped. Is this the right file? A header in front of the memory "
            "moves every address, a hole that the file leaves out moves those above it, and another value of CR3 is "
            "the root of another address space"
        )
