"""#VE and EPTP switching: what non-root operation makes of EPT without a VM exit (ept.md §9)."""

from typing import NamedTuple

from libc.stdint cimport uint32_t, uint64_t

from fastmmu._arguments cimport flag, page_address, within, word
from fastmmu._walk cimport WalkResult
from fastmmu.arch.types cimport FAULT_NONE
from fastmmu.paging.memory cimport PhysicalMemory, mem_holds
from fastmmu.paging.nonroot cimport SWITCH_BUS, SWITCH_EXIT, VE_AREA, eptp_switch, ve_due, ve_save
from fastmmu.paging.state cimport Eptp
from fastmmu.errors import BusError, StateError
from fastmmu.exits import ExitReason

cdef enum:
    UNDEFINED_OPCODE = 6        # vector of #UD


def deliver_ve(PhysicalMemory mem not None, WalkResult violation not None, area, *, eptp_index=0, pe=True,
               delivering_event=False):
    """With the control "EPT-violation #VE" on: does an access that failed raise #VE (vector 20) instead of an exit?

    It does for an EPT violation whose deciding entry has bit 63 clear, with CR0.PE set, outside event delivery, and
    while bytes 7:4 of the information area are 0. Then the 34 bytes of the area are written: exit reason, FFFFFFFFH,
    qualification, guest-linear address (0 where it is not valid), guest-physical address, EPTP index
    (SDM vol. 3, "Virtualization Exceptions"; ept.md §9).
    The exception that follows is one like others: bit 20 of the exception bitmap makes it an exit.

    :param mem: host physical memory. :param violation: the result of :func:`walk` or :func:`walk_ept` that failed.
    :param area: virtualization-exception information address, a multiple of 4 KB.
    :param eptp_index: as VMFUNC left it, 0..65535. :param pe: CR0.PE.
    :param delivering_event: the access was made while an event was delivered.
    :returns: True if #VE is raised; False if the exit takes place, and then nothing is written.
    :raises StateError: a result that translated, an area or index that is none, memory that is read-only.
    :raises BusError: the area lies outside memory.
    """
    cdef uint64_t where = page_address("the #VE information area", area)
    cdef uint32_t index = within("eptp_index", eptp_index, 0, 0xFFFF)
    cdef bint protected = flag("pe", pe), delivering = flag("delivering_event", delivering_event)
    if violation.walk.fault == FAULT_NONE:
        raise StateError(f"{violation!r} translated; give the result of a walk that ended in a fault")
    if not mem.writable:
        raise StateError("delivering #VE writes its information area; this memory is read-only, pass a copy")
    if not mem_holds(&mem.mem, where, VE_AREA):
        raise BusError(f"the #VE information area at {where:#x} lies outside memory of {mem.nbytes:#x} bytes")
    if not protected or delivering or not ve_due(&mem.mem, &violation.walk, where):
        return False
    ve_save(&mem.mem, &violation.walk, violation.la, where, index)
    return True


class VmFunction(NamedTuple):
    """What VMFUNC came to. Registers and flags are never changed.

    ``.eptp``: the :class:`Eptp` in force afterwards. ``.eptp_index``: the new EPTP index; None unless it switched.
    ``.exit``: ``ExitReason.VMFUNC`` or None. ``.exception``: vector 6, #UD, or None.
    """

    eptp: object
    eptp_index: int | None
    exit: ExitReason | None
    exception: int | None


def vmfunc(PhysicalMemory mem not None, eptp, *, eax, ecx, eptp_list, functions=1, enabled=True, ad_supported=True):
    """VMFUNC in non-root operation with EPT on (SDM vol. 3, "VM Functions"; ept.md §9).

    Function 0 switches to an EPTP of a list, without an exit.

    #UD where VM functions are not enabled or EAX is above 63; exit 59 where the controls do not allow the function, it
    is not function 0, ECX is above 511, or the EPTP of the list is not valid or of another walk length. Neither CPL
    nor the PDPTE registers play a part. With a VPID other than 0 nothing has to be invalidated; without VPIDs the
    combined mappings of VPID 0 are.

    :param mem: host physical memory. :param eptp: EPT pointer in force (int or :class:`Eptp`); the new one has its
        capabilities, controls and log. :param eax, ecx: registers, of which bits 31:0 count.
    :param eptp_list: address of the 512 EPTPs, a multiple of 4 KB. :param functions: VM-function controls.
    :param enabled: "enable VM functions" is on. :param ad_supported: EPT accessed and dirty flags exist.
    :returns: :class:`VmFunction`.
    :raises StateError: an EPTP, register or list that is none. :raises BusError: the list lies outside memory.
    """
    cdef Eptp now = eptp if isinstance(eptp, Eptp) else Eptp(eptp)
    cdef uint64_t where = page_address("the EPTP list", eptp_list), entry = 0
    # registers, of which bits 31:0 count
    cdef uint32_t function = <uint32_t> word("eax", eax), index = <uint32_t> word("ecx", ecx)
    cdef bint on = flag("enabled", enabled), with_ad = flag("ad_supported", ad_supported)
    cdef uint64_t allowed = word("functions", functions)
    cdef int end
    if not on or function > 63:
        return VmFunction(now, None, None, UNDEFINED_OPCODE)
    if function or not allowed & 1:
        return VmFunction(now, None, ExitReason.VMFUNC, None)
    end = eptp_switch(&mem.mem, now.value, now.options["maxphyaddr"], with_ad, where, index, &entry)
    if end == SWITCH_BUS:
        raise BusError(f"entry {index} of the EPTP list at {where:#x} lies outside memory of {mem.nbytes:#x} bytes")
    if end == SWITCH_EXIT:
        return VmFunction(now, None, ExitReason.VMFUNC, None)
    return VmFunction(Eptp(entry, pml=now.pml, **now.options), index, None, None)
