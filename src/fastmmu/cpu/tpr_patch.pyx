"""Instructions that access the TPR: recognized, replaced by a call, and taken apart again (apic.md §2.2)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef enum:
    ESP = 4


cdef inline uint32_t dword(const uint8_t *code) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, code, 4)
    return value


cdef void patch_decode(const uint8_t *code, uint64_t ip, Site *site) noexcept nogil:
    # code: SITE_BYTES bytes
    cdef uint8_t opcode = code[0], modrm = code[1]
    cdef int call = -1
    memset(site, 0, sizeof(Site))
    site.opcode = opcode
    if opcode == 0xA1 or opcode == 0xA3:                # MOV EAX, [disp32] and back
        site.known = True
        site.write = opcode == 0xA3
        site.length = 5
        site.address = dword(code + 1)
    elif opcode in (0x89, 0x8B, 0xC7, 0xFF) and modrm & 0xC7 == 0x05:
        site.reg = modrm >> 3 & 7
        site.length = 10 if opcode == 0xC7 else 6
        site.address = dword(code + 2)
        site.write = opcode == 0x89 or opcode == 0xC7
        site.immediate = opcode == 0xC7
        site.value = dword(code + 6)
        # the routines cannot give back ESP, nor take it from the stack that a push has moved
        site.known = site.reg == 6 if opcode == 0xFF else site.reg == 0 if opcode == 0xC7 else site.reg != ESP
    elif opcode == 0xE8:
        call = 0
    elif (opcode & 0xF8 == 0x50 or opcode == 0x90) and modrm == 0xE8:
        call = 1
    elif opcode == 0x68 and code[5] == 0xE8:
        call = 5
        site.immediate = True
        site.value = dword(code + 1)
    if call >= 0:
        site.call = True
        site.length = call + 5
        site.address = <uint32_t> (ip + call + 5) + dword(code + call + 1)


cdef int patch_replace(uint8_t *code, uint64_t ip, uint64_t rom_la) noexcept nogil:
    # put the call in place of the instruction; its length, or 0 where it is none that can be replaced
    cdef Site site
    cdef uint32_t routine, at = 1, target
    cdef uint32_t immediate
    patch_decode(code, ip, &site)
    if not site.known or site.address & 0xFFF != 0x80:
        return 0
    if site.opcode == 0xA1 or site.opcode == 0xA3:
        routine = SET_TPR_EAX if site.write else GET_TPR_EAX
        at = 0
    elif site.opcode == 0x89:
        code[0] = 0x50 | site.reg
        routine = SET_TPR
    elif site.opcode == 0x8B:
        code[0] = 0x90
        routine = GET_TPR_REG + site.reg
    elif site.opcode == 0xFF:
        code[0] = 0x50
        routine = GET_TPR_STACK
    else:
        immediate = dword(code + 6)
        code[0] = 0x68
        memcpy(code + 1, &immediate, 4)
        routine = SET_TPR
        at = 5
    target = <uint32_t> rom_la + ROUTINE_BYTES * routine - (<uint32_t> ip + at + 5)
    code[at] = 0xE8
    memcpy(code + at + 1, &target, 4)
    return site.length


cdef void patch_original(uint8_t *code, uint32_t number, bint write, uint32_t address) noexcept nogil:
    # the instruction that a guest has at a site before anybody replaces it: encodings take turns
    cdef uint32_t at = 2
    memset(code, 0x90, SITE_BYTES)
    if number % 3 == 0:
        code[0] = 0xA3 if write else 0xA1
        at = 1
    elif write or number % 3 == 1:
        code[0] = 0x89 if write else 0x8B
        code[1] = 0x05 | (0 if number & 1 else 1) << 3
    else:
        code[0] = 0xFF
        code[1] = 0x35
    memcpy(code + at, &address, 4)
