"""Bits of control registers, of EFER and RFLAGS, and rules that KVM itself refuses a write by (arch/registers.pxd)."""

from __future__ import annotations

CR0_PE, CR0_MP, CR0_TS, CR0_NE, CR0_WP = 1 << 0, 1 << 1, 1 << 3, 1 << 5, 1 << 16
CR0_NW, CR0_CD, CR0_PG = 1 << 29, 1 << 30, 1 << 31
CR3_NO_FLUSH = 1 << 63
CR4_VME, CR4_PSE, CR4_PAE, CR4_PGE, CR4_VMXE, CR4_PCIDE = 1 << 0, 1 << 4, 1 << 5, 1 << 7, 1 << 13, 1 << 17
CR4_SMEP, CR4_SMAP, CR4_PKE, CR4_CET, CR4_PKS = 1 << 20, 1 << 21, 1 << 22, 1 << 23, 1 << 24
EFER_LME, EFER_NXE = 1 << 8, 1 << 11
RFLAGS_FIXED, RFLAGS_IOPL, RFLAGS_VM = 1 << 1, 3 << 12, 1 << 17
PRESENT = 1
MSR_EFER = 0xC0000080
PF_VECTOR = 14
GENERAL_PROTECTION = 0x80000B0D  # interruption information of a #GP

# Rules of fastmmu.arch.registers.RULES.
RULE_PDPTE, RULE_CR4_RESERVED, RULE_CR4_NOT_OFFERED, RULE_CR4_KVM = 6, 7, 15, 19

M32 = (1 << 32) - 1
M64 = (1 << 64) - 1
