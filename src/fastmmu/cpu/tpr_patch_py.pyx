"""Replacing instructions that access the TPR, for Python."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from fastmmu.cpu.tpr_patch cimport Site, patch_decode, patch_dword, patch_polls, patch_replace

from fastmmu.errors import StateError


def replace(code, uint64_t ip, uint64_t rom):
    """The bytes that a VMM puts in place of an instruction that accesses the TPR.

    :param code: the instruction, at most 16 bytes. :param ip: its address. :param rom: address of the option ROM; its
        routines stand 32 bytes apart: get to EAX, set from EAX, set from the stack, get to the stack, to a register.
    :returns: as many bytes as the instruction has, or None where it is no such instruction.
    """
    cdef uint8_t buffer[16]
    cdef int length
    if len(code) > 16:
        raise StateError(f"an instruction of {len(code)} bytes; 16 are read")
    memset(buffer, 0x90, 16)
    for i, byte in enumerate(code):
        buffer[<int> i] = byte
    length = patch_replace(buffer, ip, rom)
    return bytes([buffer[i] for i in range(length)]) if length else None


def target(code, uint64_t ip):
    """Address that a replaced instruction calls, or None."""
    cdef uint8_t buffer[16]
    cdef Site site
    memset(buffer, 0x90, 16)
    for i, byte in enumerate(code[:16]):
        buffer[<int> i] = byte
    patch_decode(buffer, ip, &site)
    return site.address if site.call else None


def record(unsigned int tpr, served, requested):
    """The first four bytes of a vCPU's record as the VMM writes them; `served`, `requested`: vectors or None."""
    cdef int isr = -1 if served is None else served, irr = -1 if requested is None else requested
    return patch_dword(tpr, isr, irr) & 0xFFFFFFFF


def polls(unsigned int record, unsigned int tpr):
    """After a write of the TPR: does the replacement call the VMM?"""
    return bool(patch_polls(record, tpr))
