"""drgn: memory that fastmmu knows, as that of a program.

A guest of a virtual machine inside the image of its host is debugged as any kernel: its physical memory is what the EPT
makes of the host's (:func:`fastmmu.space.guest_memory`), its linear addresses are those of an
:class:`~fastmmu.AddressSpace`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastmmu._checked import checked
from fastmmu.errors import BusError, MissingExtraError, NotMappedError
from fastmmu.paging.memory import PhysicalMemory
from fastmmu.space.space import AddressSpace

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["add_memory"]


def _drgn() -> ModuleType:
    try:
        import drgn
    except ImportError as error:
        raise MissingExtraError("a program of drgn", "drgn") from error
    module: ModuleType = drgn
    return module


@checked
def add_memory(program: Any, memory: PhysicalMemory, space: AddressSpace | None = None) -> None:
    """Give a `drgn.Program` physical memory, and linear addresses as an address space has them.

    Of an image alone: ``add_memory(program, image.memory, AddressSpace(image.memory, image.state()))``. Of a guest
    below an EPT: ``add_memory(program, guest_memory(memory, eptp), AddressSpace(memory, state, eptp))``. What is not
    there is a `drgn.FaultError` of the address.

    :raises MissingExtraError: drgn is not installed.
    """
    drgn = _drgn()

    def physical(address: int, count: int, offset: int, physical: bool) -> bytes:
        try:
            return memory.read(address, count)
        except BusError as error:
            raise drgn.FaultError(str(error), address) from error

    def linear(address: int, count: int, offset: int, physical: bool) -> bytes:
        assert space is not None
        try:
            return space.read(address, count)
        except NotMappedError as error:
            raise drgn.FaultError(str(error), address) from error

    segments: list[tuple[int, int, Callable[[int, int, int, bool], bytes], bool]]
    segments = [(start, end - start, physical, True) for start, end in memory.ranges.tolist()]
    if space is not None:
        segments.append((0, (1 << 64) - 1, linear, False))
    for start, size, read, is_physical in segments:
        program.add_memory_segment(start, size, read, is_physical)
