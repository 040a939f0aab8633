"""A vCPU, written and read: the processor's part, and what KVM keeps of it. Header: cpu.pxd."""

from libc.string cimport memcmp

from fastmmu.arch.registers cimport Registers, paging_of
from fastmmu.arch.types cimport Ept, Paging
from fastmmu.arch.vmx cimport N_REASONS, Vmcs
from fastmmu.cpu.vcpu cimport ABORT_NONE, ACC_PDPTES, INS_INVLPG, Vcpu
from fastmmu.kvm.kvm cimport CLASS_GUEST, EXITING_GUEST_MODE, NOWHERE, KvmVcpu
from fastmmu.machine.checkpoint.archive cimport _Archive

from fastmmu.errors import CheckpointError

cdef enum:
    MOST_REQUESTS = 15
    MOST_RULE = 31


cdef int keep_vcpu(_Archive a, KvmVcpu *vcpu) except -1:
    # KvmVcpu of kvm/kvm.pxd. Of the new machine: kvm irq index. mmu: mmu.pyx
    keep_processor(a, &vcpu.cpu)
    a.under("vcpu")
    a.u32("vpid", &vcpu.vpid, 0xFFFF)
    a.u32("asid", &vcpu.asid, 0xFFFF)
    a.u64("asid_generation", &vcpu.asid_generation)
    a.number("mode", &vcpu.mode, 0, EXITING_GUEST_MODE)
    a.u32("pcpu", &vcpu.pcpu)
    a.u32("requests", &vcpu.requests, MOST_REQUESTS)
    a.number("fault_class", &vcpu.fault_class, 0, CLASS_GUEST)
    a.u64("last_retry", &vcpu.last_retry)
    a.plain("c", &vcpu.c, sizeof(vcpu.c))
    keep_registers(a, "vcpu.arch", &vcpu.arch)
    keep_paging(a, "vcpu.guest", &vcpu.guest, &vcpu.arch, vcpu.kvm.shadow)
    if a.loading and vcpu.pcpu and vcpu.pcpu != NOWHERE:
        a.refuse(f"a vCPU ran on physical CPU {int(vcpu.pcpu)}, and there is one")
    return 0


cdef int keep_processor(_Archive a, Vcpu *v) except -1:
    # Vcpu of cpu/vcpu.pxd. Of the new machine: mem tlb guest svm apic vmcs handler host_pages premap detector log
    # caches vmm_caches handled records exit_touches. Derived: need. None is under way: abort abort_address.
    # Elsewhere: ept. Refused: agile
    a.under("cpu")
    a.same("guest", v.guest)
    a.same("svm", v.svm)
    a.same("host_pages", v.host_pages)
    a.same("apic", v.apic != NULL)
    a.same("abort", ABORT_NONE)
    a.flag("fresh", &v.fresh)
    a.flag("vm86", &v.vm86)
    a.flag("outside", &v.outside)
    a.flag("ept_on", &v.ept_on)
    a.flag("vpid_on", &v.vpid_on)
    a.u32("tlb_control", &v.tlb_control, 7)
    a.flag("below_threshold", &v.below_threshold)
    a.u64("cr2", &v.cr2)
    a.u32("error_code", &v.error_code)
    a.u32("store_bytes", &v.store_bytes, 4096)
    a.u64("store_value", &v.store_value)
    a.u64("store_high", &v.store_high)
    a.u64("access_la", &v.access_la)
    a.number("access", &v.access, 0, ACC_PDPTES)
    a.u32("access_bytes", &v.access_bytes, 4096)
    a.u64("load_value", &v.load_value)
    a.u64("load_high", &v.load_high)
    a.u32("loaded", &v.loaded, 16)
    a.u64("emulated", &v.emulated)
    a.flag("event", &v.event)
    a.u32("instruction", &v.instruction, INS_INVLPG)
    a.u32("instruction_cr", &v.instruction_cr, 15)
    a.u32("invpcid_pcid", &v.invpcid_pcid, 0xFFF)
    a.u64("source", &v.source)
    a.u64("result", &v.result)
    a.u32("rule", &v.rule, MOST_RULE)
    a.u64("now", &v.now)
    a.plain("c", &v.c, sizeof(v.c))
    keep_registers(a, "cpu.r", &v.r)
    keep_paging(a, "cpu.hw", &v.hw, &v.r, True)
    keep_vmcs(a, &v.vmcs)
    keep_ept(a, v)
    if a.loading and v.tlb_control not in (0, 1, 3, 7):
        a.refuse(f"TLB_CONTROL is {int(v.tlb_control)}")
    if a.loading and not v.guest and (v.ept_on or v.vpid_on or v.outside):
        a.refuse("a processor without a VMM in VMX operation")
    return 0


cdef int keep_registers(_Archive a, str at, Registers *r) except -1:
    # Registers of arch/registers.pxd
    a.under(at)
    a.u64("cr0", &r.cr0)
    a.u64("cr3", &r.cr3)
    a.u64("cr4", &r.cr4)
    a.u64("efer", &r.efer)
    a.plain("pdpte", r.pdpte, sizeof(r.pdpte))
    a.u64("pat", &r.pat)
    a.u32("pkru", &r.pkru)
    a.u32("pkrs", &r.pkrs)
    a.same("maxphyaddr", r.maxphyaddr)
    a.same("page1gb", r.page1gb)
    a.same("pse36", r.pse36)
    a.same("lazy_upper_a", r.lazy_upper_a)
    a.u8("cpl", &r.cpl, 3)
    a.u8("ac", &r.ac, 1)
    a.u8("implicit", &r.implicit, 1)
    return 0


cdef int keep_paging(_Archive a, str at, Paging *g, const Registers *r, bint in_use) except -1:
    # Paging of arch/types.pxd. Derived of the registers: frame rsvd mode levels index_bits entry_shift la_bits large_ok
    # pse36_bits lazy_upper_a id_bit pat
    cdef Paging of
    a.under(at)
    paging_of(r, &of)
    if a.loading and in_use:
        g[0] = of
    a.u64("root", &g.root)
    a.plain("pdpte", g.pdpte, sizeof(g.pdpte))
    a.u64("cr3", &g.cr3)
    a.u32("pkr_user", &g.pkr_user)
    a.u32("pkr_super", &g.pkr_super)
    a.u32("pcid", &g.pcid, 0xFFF)
    a.u8("user", &g.user, 1)
    a.u8("implicit", &g.implicit, 1)
    a.u8("cd", &g.cd, 1)
    a.u8("wp", &g.wp, 1)
    a.u8("nxe", &g.nxe, 1)
    a.u8("smep", &g.smep, 1)
    a.u8("smap", &g.smap, 1)
    a.u8("ac", &g.ac, 1)
    a.u8("pge", &g.pge, 1)
    a.u8("lma", &g.lma, 1)
    a.u8("pcid_on", &g.pcid_on, 1)
    a.u8("write_ad", &g.write_ad, 1)
    if not a.loading and in_use and not (
            of.mode == g.mode and of.levels == g.levels and of.index_bits == g.index_bits and of.frame == g.frame
            and of.entry_shift == g.entry_shift and of.la_bits == g.la_bits and of.pse36_bits == g.pse36_bits
            and of.lazy_upper_a == g.lazy_upper_a and of.id_bit == g.id_bit and of.pat == g.pat
            and not memcmp(of.rsvd, g.rsvd, sizeof(g.rsvd)) and not memcmp(of.large_ok, g.large_ok, 6)):
        raise CheckpointError(f"{at}: what paging goes by is not what its registers say; please report this")
    return 0


cdef int keep_vmcs(_Archive a, Vmcs *x) except -1:
    # Vmcs of arch/vmx.pxd
    a.under("vmcs")
    a.same("virtual_apic_address", x.virtual_apic_address)
    a.same("apic_access_address", x.apic_access_address)
    a.same("posted_descriptor_address", x.posted_descriptor_address)
    a.same("pml_address", x.pml_address)
    a.u32("pin_based", &x.pin_based)
    a.u32("primary", &x.primary)
    a.u32("secondary", &x.secondary)
    a.u32("vm_exit", &x.vm_exit)
    a.u32("vm_entry", &x.vm_entry)
    a.u64("tertiary", &x.tertiary)
    a.u32("exception_bitmap", &x.exception_bitmap)
    a.u32("pfec_mask", &x.pfec_mask)
    a.u32("pfec_match", &x.pfec_match)
    a.u32("cr3_target_count", &x.cr3_target_count, 4)
    a.plain("cr3_target", x.cr3_target, sizeof(x.cr3_target))
    a.u16("vpid", &x.vpid)
    a.u64("eptp", &x.eptp)
    a.u16("posted_vector", &x.posted_vector, 0xFF)
    a.u16("guest_interrupt_status", &x.guest_interrupt_status)
    a.u32("tpr_threshold", &x.tpr_threshold)
    a.plain("eoi_exit_bitmap", x.eoi_exit_bitmap, sizeof(x.eoi_exit_bitmap))
    a.u64("vm_functions", &x.vm_functions)
    a.u64("eptp_list_address", &x.eptp_list_address)
    a.u64("ve_information_address", &x.ve_information_address)
    a.u64("sppt_pointer", &x.sppt_pointer)
    a.u16("pml_index", &x.pml_index)
    a.u64("cr0_mask", &x.cr0_mask)
    a.u64("cr4_mask", &x.cr4_mask)
    a.u64("cr0_shadow", &x.cr0_shadow)
    a.u64("cr4_shadow", &x.cr4_shadow)
    a.u64("guest_cr0", &x.guest_cr0)
    a.u64("guest_cr3", &x.guest_cr3)
    a.u64("guest_cr4", &x.guest_cr4)
    a.u64("guest_efer", &x.guest_efer)
    a.u64("guest_rflags", &x.guest_rflags)
    a.plain("guest_pdpte", x.guest_pdpte, sizeof(x.guest_pdpte))
    a.u32("exit_reason", &x.exit_reason)
    a.u32("exit_interruption_info", &x.exit_interruption_info)
    a.u32("exit_interruption_error", &x.exit_interruption_error)
    a.u64("exit_qualification", &x.exit_qualification)
    a.u64("guest_physical_address", &x.guest_physical_address)
    a.u64("guest_linear_address", &x.guest_linear_address)
    a.u64("operand", &x.operand)
    if a.loading and x.exit_reason & 0xFFFF >= N_REASONS:
        a.refuse(f"a VM exit for reason {int(x.exit_reason)}")
    return 0


cdef int keep_ept(_Archive a, Vcpu *v) except -1:
    # Ept of arch/types.pxd. Of the new machine: frame rsvd present flip accessed dirty pat pml_query levels spptp spp
    # npt ad mbec xo adv_info large_ok ad_before_final ad_unchecked write_ad
    cdef Ept *e = &v.ept
    cdef bint logs = e.pml_index != NULL
    a.under("ept")
    a.u64("root", &e.root)
    a.u64("pml_base", &e.pml_base)
    a.u64("apic_access", &e.apic_access)
    a.flag("pml", &logs)
    e.pml_index = &v.vmcs.pml_index if logs else NULL
    return 0
