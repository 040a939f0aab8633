"""Replacing instructions that access the TPR, for Python."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmmu._arguments cimport many, within, word
from fastmmu.cpu.tpr_patch cimport Site, patch_decode, patch_dword, patch_polls, patch_replace

from fastmmu.errors import StateError


cdef bytes _bytes(object code):
    # of an instruction
    if isinstance(code, (bytes, bytearray)):
        return bytes(code)
    return bytes([within("a byte of code", each, 0, 0xFF) for each in many("code", code)])


def replace(code, ip, rom):
    """The bytes that a VMM puts in place of an instruction that accesses the TPR.

    :param code: the instruction, at most 16 bytes. :param ip: its address. :param rom: address of the option ROM; its
        routines stand 32 bytes apart: get to EAX, set from EAX, set from the stack, get to the stack, to a register.
    :returns: as many bytes as the instruction has, or None where it is no such instruction.
    """
    cdef uint8_t buffer[16]
    cdef int length
    cdef uint64_t at = word("ip", ip), routines = word("rom", rom)
    found = _bytes(code)
    if len(found) > 16:
        raise StateError(f"an instruction of {len(found)} bytes; 16 are read")
    memset(buffer, 0x90, 16)
    for i, byte in enumerate(found):
        buffer[<int> i] = byte
    length = patch_replace(buffer, at, routines)
    return bytes([buffer[i] for i in range(length)]) if length else None


def target(code, ip):
    """Address that a replaced instruction calls, or None."""
    cdef uint8_t buffer[16]
    cdef Site site
    cdef uint64_t at = word("ip", ip)
    memset(buffer, 0x90, 16)
    for i, byte in enumerate(_bytes(code)[:16]):
        buffer[<int> i] = byte
    patch_decode(buffer, at, &site)
    return site.address if site.call else None


def record(tpr, served, requested):
    """The first four bytes of a vCPU's record as the VMM writes them; `served`, `requested`: vectors or None."""
    cdef int isr = -1 if served is None else within("served", served, 0, 255)
    cdef int irr = -1 if requested is None else within("requested", requested, 0, 255)
    return patch_dword(within("tpr", tpr, 0, 0xFFFFFFFF), isr, irr) & 0xFFFFFFFF


def polls(record, tpr):
    """After a write of the TPR: does the replacement call the VMM?"""
    cdef uint32_t held = within("record", record, 0, 0xFFFFFFFF)
    return bool(patch_polls(held, within("tpr", tpr, 0, 0xFFFFFFFF)))
