# The kernels for other packages in Cython: what stands here can be cimported, and stays where it is; a change of it is
# a line in CHANGELOG.md. All else in the headers may change at any time. `fastmmu.get_include()` is the directory for
# Cython's include path, examples/cython a package that does it, tests/project/test_wheel.py compiles every name below.
#
# Functions that are noexcept nogil check no pointer; what each does stands at its definition. Structs are the caller's,
# on the stack or anywhere; they gain members, so build anew for each version of fastmmu.
#
# What the manuals say: bits of entries; kinds of access, outcomes, and the structs that walks take and fill.
#
#     from fastmmu.arch.bits cimport (
#         EPT_A, EPT_D, EPT_IPAT, EPT_R, EPT_W, EPT_X, EPT_XU, FRAME, ONES, A, D, G, P, PCD, PS, PWT, RW, US, XD,
#     )
#     from fastmmu.arch.types cimport (
#         ACC_R, ACC_RW, ACC_W, ACC_X, FAULT_APIC, FAULT_BUS, FAULT_EPT_MISCONFIG, FAULT_EPT_VIOLATION, FAULT_GP,
#         FAULT_NONE, FAULT_PF, FAULT_PML_FULL, FAULT_SPP, MODE_4, MODE_5, MODE_32, MODE_NONE, MODE_PAE, STEP_DATA,
#         STEP_EPT, STEP_EPT_AD, STEP_GUEST, STEP_GUEST_AD, STEP_SPP, Ept, GuestPath, Mem, Paging, Step, Steps, Walk,
#     )
#
# Memory and registers: `PhysicalMemory.mem`; `prepare(memory, state, eptp, False, NULL, &paging, &ept, &walk)` checks
# them for queries, and gives a fault code where the PDPTE registers cannot be loaded.
#
#     from fastmmu.paging.memory cimport (
#         PhysicalMemory, mem_holds, mem_read32, mem_read64, mem_write32, mem_write64,
#     )
#     from fastmmu.paging.state cimport Eptp, GuestState, prepare
#
# Walks: of one address, called or taken inline (without EPT, caches or a record of its steps these are NULL), and of
# many: a Query with 1 << region_bits zeroed Regions for the guest, as many for the EPT; each thread needs its own.
# `batch_size` of a Batch with its query and n says how many are worth their memory.
#
#     from fastmmu.paging.walk cimport walk_cached, walk_path, walk_silent, walk_steps
#     from fastmmu.paging.guest cimport (
#         canonical, guest_walk, is_leaf, leaf_address, reachable, root_address, table_address,
#     )
#     from fastmmu.paging.ept cimport NEED_R, NEED_W, NEED_X, EptLeaf, ept_walk, need_of
#     from fastmmu.paging.batch cimport Batch, Query, Region, batch_size, query_init, translate_batch
#
# The TLB, `TLB.t`: look-ups and fills in the context that tlb_switch puts in force.
#
#     from fastmmu.tlb.tlb cimport TLB
#     from fastmmu.tlb.lookup cimport (
#         Tlb, tlb_fill, tlb_l1, tlb_l2, tlb_pa, tlb_refill, tlb_switch, tlb_value, tlb_value_of_walk,
#     )
#
# A replacement policy for TLBs, named by register_policy() (examples/policy; docs/replacement.md).
#
#     from fastmmu.tlb.policy cimport (
#         NO_PAGE, PolicySets, Replacer, ReplacementPolicy, policy_page, policy_set, policy_size,
#     )
#
# An extension of one's own, asked between a miss of both levels and the walk (docs/tlb-extensions.md).
#
#     from fastmmu.tlb.extension cimport (
#         Extension, Extensions, PageQuery, Queried, extension_add, extension_cached, extension_tag,
#         extensions_free, extensions_new, extensions_ready, prefetch_walk, query, read_arrays, refer, tag_live,
#         tag_selected,
#     )
#     from fastmmu.tlb.which cimport Which, selects
#     from fastmmu.tlb.entries cimport F_G, TLB_FRAME, TLB_LA, is_fractured
#
# A machine: accesses of its guest, to addresses that are `reachable(la, vcpu.hw.la_bits)`; one thread at a time.
#
#     from fastmmu.machine.machine cimport Machine, machine_raise, machine_vcpu
#     from fastmmu.cpu.vcpu cimport (
#         BY_SUPERVISOR, BY_USER, DONE_ABORT, DONE_EMULATED, DONE_GP, DONE_OK, DONE_PF, Vcpu, vcpu_access, vcpu_load,
#         vcpu_store,
#     )
