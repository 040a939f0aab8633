"""Where in host memory the parts of a machine lie."""

from libc.stdint cimport uint64_t

from fastmmu._arguments cimport choice, flag, instance, many, within
from fastmmu.cpu.apic cimport APIC_BASE
from fastmmu.kvm.asid_py cimport AsidAllocator
from fastmmu.kvm.vpid_py cimport VpidAllocator
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.tlb.tlb cimport TLB

from fastmmu.errors import ConfigError
from fastmmu.machine.slots import MemorySlot


cdef bint has_identity(config, bint guest_kernel):
    # the VMM needs an identity table where the guest may stop paging, and guest memory leaves it room
    return (config.mmu == "ept" and not config.unrestricted and not guest_kernel
            and config.memory_bytes <= config.identity_map)


cdef uint64_t host_bytes(config) except 0:
    # host memory that a machine takes: the guest's, and in front of it the VMM's tables
    cdef uint64_t guest_bytes = config.memory_bytes
    if config.mmu == "native":
        return guest_bytes
    return guest_bytes + (((guest_bytes >> 5) + (1 << 26)) & ~(<uint64_t> 0x1FFFFF))


cdef uint64_t machine_bytes(config, slots) except 0:
    # host memory of a host's machine: with its slots, each from the next 2 MB on, and behind them the pages of those of
    # its vCPUs, up to 255, that are not the first
    cdef uint64_t found = host_bytes(config)
    for slot in slots:
        found += (slot.gpa & 0x1FFFFF) + slot.size + 0x1FFFFF & ~0x1FFFFF
    return found + (1 << 21 if config.tpr is not None else 0)


cdef object _slot(each):
    # a MemorySlot whose fields are what they should be: a tuple checks nothing
    slot = instance("a slot", each, MemorySlot)
    if len(slot) != len(MemorySlot._fields):
        raise ConfigError(f"a slot has {len(MemorySlot._fields)} fields; give a fastmmu.MemorySlot")
    return MemorySlot(
        within("MemorySlot gpa", slot.gpa, 0, 1ULL << 46, ConfigError),
        within("MemorySlot size", slot.size, 0, 1ULL << 46, ConfigError), flag("MemorySlot readonly", slot.readonly),
        choice("MemorySlot host", slot.host, ("4k", "2m", "untouched"), ConfigError),
        flag("MemorySlot private", slot.private), flag("MemorySlot device", slot.device),
        flag("MemorySlot emulated", slot.emulated))


cdef list all_slots(config, bint guest_kernel, slots):
    # a machine's slots beside its memory: those that were asked for, then the VMM's own
    found = [_slot(each) for each in many("slots", slots)]
    for slot in found:
        if config.mmu == "native":
            raise ConfigError('slots are the VMM\'s: use mmu="ept" or mmu="shadow"')
        if (slot.gpa | slot.size) & 0xFFF or not slot.size or slot.gpa + slot.size > 1 << 46:
            raise ConfigError(f"{slot}: gpa and size must be multiples of 4096 below {1 << 46:#x}")
    if config.apic_page != "none" and config.mmu != "native":
        found.append(MemorySlot(APIC_BASE, 0x1000, private=True, emulated=config.apic_page == "emulated"))
    if has_identity(config, guest_kernel):
        found.append(MemorySlot(config.identity_map, 0x1000, private=True))
        found.append(MemorySlot(config.identity_map + 0x1000, 0x3000, private=True))
    return found


cdef tuple placed_slots(slots, end):
    # ([(slot, its host-physical address)], the end of memory); they follow `end`, equal to the guest's modulo 2 MB
    placed = []
    for slot in slots:
        at = (end + 0x1FFFFF & ~0x1FFFFF) + (slot.gpa & 0x1FFFFF)
        end = at + slot.size
        placed.append((slot, at))
    return placed, (end + 0x1FFFFF & ~0x1FFFFF)


cdef object checked_place(place):
    # (memory, origin, TLB, VPIDs, ASIDs)
    parts = many("place", place)
    if len(parts) != 5:
        raise ConfigError(f"place has 5 parts, not {len(parts)}: a host's memory, where in it, a TLB, VPIDs, ASIDs")
    memory, origin, tlb, vpids, asids = parts
    if not instance("the memory of place", memory, PhysicalMemory).writable:
        raise ConfigError("the memory of place is read-only; a machine writes its own")
    if (<PhysicalMemory> memory).mem.segments != NULL:
        raise ConfigError("the memory of place has holes; a machine needs one without")
    origin = within("the origin of place", origin, 0, (<PhysicalMemory> memory).mem.nbytes, ConfigError)
    if origin & 0xFFF:
        raise ConfigError(f"place={origin:#x} is not aligned to 4 KB")
    return (memory, origin, instance("the TLB of place", tlb, TLB),
            instance("the VPIDs of place", vpids, VpidAllocator),
            instance("the ASIDs of place", asids, AsidAllocator))
