# Instructions that access the TPR, and the calls that a VMM puts in their place (apic.md §2.2). The guest's code has
# 32 bits; its 4 GB lie at the top of the address space here.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.types cimport Mem
from fastmmu.paging.memory cimport mem_write64

cdef extern from *:
    """
    #define FM_HIGH_HALF 0xFFFFFFFF00000000ULL
    """
    const uint64_t HIGH_HALF "FM_HIGH_HALF"

cdef enum:
    SITE_BYTES = 16             # room of an instruction and what follows it
    SITES = 128                 # that read, and as many that write
    RECORD_STRIDE = 128
    ROM_RECORDS = 0x800         # offset of the records in the option ROM

cdef enum:
    ROUTINES = 12
    ROUTINE_BYTES = 32

cdef enum Routine:              # of the option ROM, 32 bytes each
    GET_TPR_EAX = 0
    SET_TPR_EAX = 1
    SET_TPR = 2
    GET_TPR_STACK = 3
    GET_TPR_REG = 4             # and one for each register

cdef struct Patch:
    uint64_t code_la            # of the page that holds the sites; 0: there is none
    uint64_t rom_la             # option ROM: routines and records
    uint64_t record_hpa         # of this vCPU's record
    uint32_t cpu                # number of the vCPU, as the guest's KPCR has it
    bint one_vcpu               # the first version: one record, so that a guest may have one vCPU alone
    bint in_use                 # the guest has been patched: the record holds the TPR
    uint32_t number             # of the site that runs
    uint64_t ip, ip_hpa         # of the instruction
    bint at_site                # the access under way comes from a site
    bint enabling               # a replacement asks for its record: OUT 7EH

cdef struct Site:
    bint known                  # an encoding that can be replaced
    bint write
    bint call                   # replaced already
    uint32_t length
    uint32_t address            # operand, or target of the call
    bint immediate              # its value stands in the instruction
    uint32_t value
    uint8_t reg
    uint8_t opcode


cdef inline uint64_t patch_place(uint32_t number, bint write) noexcept nogil:
    # offset of a site in its page
    return (number % SITES * 2 + write) * SITE_BYTES


cdef inline bint patch_writes(const Patch *p, const Site *site, bint *writes) noexcept nogil:
    # the direction of an access to the TPR, or of the call of a routine of the option ROM; False: it is neither
    cdef uint32_t offset = site.address - <uint32_t> p.rom_la, routine = offset // ROUTINE_BYTES
    if site.call:
        writes[0] = routine == SET_TPR_EAX or routine == SET_TPR
        return p.rom_la != 0 and routine < ROUTINES and offset % ROUTINE_BYTES == 0
    writes[0] = site.write
    return site.known and site.address & 0xFFF == 0x80


cdef inline bint patch_windows(uint64_t ip) noexcept nogil:
    # where a kernel of 32-bit Windows lies: nothing else is replaced (QEMU's evaluate_tpr_instruction)
    return ip >> 28 & 15 == 8 or ip >> 28 & 15 == 14


cdef inline uint64_t patch_record(const Patch *p) noexcept nogil:
    return p.rom_la + ROM_RECORDS + (0 if p.one_vcpu else p.cpu % 16 * RECORD_STRIDE)


cdef inline void patch_use_rom(Patch *p, Mem *mem, uint64_t la, uint64_t hpa) noexcept nogil:
    # the option ROM, at the start of a page: replacements call its routines, and each vCPU has a record in it
    p.rom_la = la
    p.record_hpa = hpa + (patch_record(p) & 0xFFF)
    mem_write64(mem, p.record_hpa, 0)


cdef inline bint patch_polls(uint64_t record, uint32_t tpr) noexcept nogil:
    # after a write of the TPR: is the highest request above the TPR and what is in service?
    cdef uint32_t served = record >> 8 & 0xFF, requested = record >> 24 & 0xFF
    return requested > (tpr & 0xFF) and requested > served


cdef inline uint64_t patch_dword(uint32_t tpr, int served, int requested) noexcept nogil:
    # what the VMM writes before VM entry; served, requested: -1 none. Bit 32: in use
    cdef uint64_t isr = served & 0xF0 if served > 0 else 0
    cdef uint64_t irr = requested if requested > 0 else 0
    return (tpr & 0xFF) | isr << 8 | irr << 24 | 1ULL << 32

cdef void patch_decode(const uint8_t *code, uint64_t ip, Site *site) noexcept nogil
cdef int patch_replace(uint8_t *code, uint64_t ip, uint64_t rom_la) noexcept nogil
cdef void patch_original(uint8_t *code, uint32_t number, bint write, uint32_t address) noexcept nogil
