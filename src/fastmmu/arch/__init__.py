"""What the manuals say: bits, structs of registers, rules of control registers and memory types. No state.

    bits        entries of guest and EPT tables, control registers, as 64-bit C constants
    types       structs that the kernels share: memory, registers, steps, the outcome of a walk
    vmcb        the fields of a VMCB of AMD
    vmx         the VMCS: controls and exit information; exit reasons
    pferr       bits of the error code of a #PF
    msr         numbers of model-specific registers
    ops         operations of a trace event
    permutation random orders without a table
    registers   which writes to control registers are legal, and what paging derives from them
    memtype     PAT, MTRRs, EPT type, and how they combine; memtype_py: `MemoryType`, `Mtrrs`

Imports the vocabulary alone (`fastmmu.errors`, `exits`, `ops`, `dtypes`). Headers hold constants, structs and inline
functions.

To add a bit or a field: its header, named as the manual names it, with the chapter; where masks must not overlap, a
static assertion beside them. To add an entry format: its bits here, its walk in `paging`, the format in
`mmu/spte.pxd`.
"""

from __future__ import annotations
