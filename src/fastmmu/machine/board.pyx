"""What a machine is made of, put together from its configuration: memory, processor, VMM, vCPUs."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fastmmu._arguments cimport bytes_in, many, word, words_in, words_out
from fastmmu.arch.registers cimport RULE_CR4_NOT_OFFERED
from fastmmu.arch.types cimport FAULT_GP, MODE_4, MODE_PAE, Paging, Walk
from fastmmu.arch.vmx cimport (
    EXIT_EXTERNAL_INTERRUPT, EXIT_PREEMPTION_TIMER, PIN_EXTERNAL_INTERRUPT, PRIMARY_CR3_LOAD, PRIMARY_CR3_STORE,
    PRIMARY_INVLPG, PRIMARY_SECONDARY, SECONDARY_EPT,
)
from fastmmu.cache.hierarchy_py cimport CacheHierarchy
from fastmmu.cpu.apic cimport APIC_BASE, apic_reset
from fastmmu.cpu.interrupts cimport (
    HANDLER_EOI, HANDLER_IRQL, RULE_KVM, RULE_SLIDES, WAY_APICV, WAY_FLEXPRIORITY, WAY_PATCH, WAY_TRAP, Interrupts,
    irq_free, irq_init,
)
from fastmmu.cpu.missing_flushes cimport MissingFlushes
from fastmmu.cpu.tpr_patch cimport patch_use_rom
from fastmmu.cpu.vcpu cimport ABORT_NONE, ABORT_PYTHON, Vcpu, vcpu_use_caches
from fastmmu.kvm.asid_py cimport AsidAllocator
from fastmmu.kvm.exits cimport kvm_handle
from fastmmu.kvm.host_calls cimport (
    call_allocate_vpid, call_create_lapic, call_enter_again, call_free_vpid, call_load, call_load_root, call_put,
    call_reset,
)
from fastmmu.kvm.modes cimport modes_cr4, modes_tables
from fastmmu.kvm.port cimport vm_of
from fastmmu.kvm.kvm cimport IN_GUEST_MODE, NOWHERE, OUTSIDE_GUEST_MODE
from fastmmu.kvm.vcpu cimport kvm_vcpu_create, kvm_vcpu_vpid
from fastmmu.kvm.vmm cimport has_ended
from fastmmu.kvm.vpid_py cimport VpidAllocator
from fastmmu.machine.agile_setup cimport agile_build, agile_gone, shadow_end
from fastmmu.machine.counters cimport counters_of
from fastmmu.machine.events cimport Run, run_events, to_run
from fastmmu.machine.exit_ring cimport log_runs, ring_of
from fastmmu.machine.frame_setup cimport frames_choose
from fastmmu.machine.guest_kernel cimport (
    GUEST_APIC, GUEST_CODE, GUEST_ROM, kernel_boot, kernel_free, kernel_init, kernel_load, kernel_resume,
)
from fastmmu.machine.host_blocks cimport host_blocks
from fastmmu.machine.kernel_state cimport PAGES_2M, PAGES_4K, PAGES_THP, SHOOT_INVLPGB, SHOOT_IPI, SHOOT_PV
from fastmmu.machine.layout cimport (
    PAE_ROOT, PML_LOG, VCPU_BYTES, VIRTUAL_APIC, VMM_TABLES, all_slots, checked_place, has_identity, host_bytes,
    overlaps, placed_slots,
)
from fastmmu.machine.stops cimport stop
from fastmmu.machine.vmm_policy cimport policy_choose
from fastmmu.mmu.memslots cimport Memslot, slots_add, slots_untouched
from fastmmu.mmu.pages cimport mmu_free, mmu_init
from fastmmu.mmu.roots cimport mmu_set_root, mmu_vcpu_create
from fastmmu.mmu.spte cimport FORMAT_EPT, FORMAT_NPT, FORMAT_PAGING
from fastmmu.paging.guest cimport root_address
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.paging.state cimport Eptp, GuestState, Npt, SecondLevel
from fastmmu.paging.walk cimport load_pdptes
from fastmmu.tlb.extension cimport events_begin, events_end
from fastmmu.tlb.lookup cimport TlbCounters
from fastmmu.tlb.tlb cimport TLB
from fastmmu.threads.turns cimport Pace, Turn, Turns, pace_begin

from fastmmu.arch.registers import RULES
from fastmmu.errors import BusError, ConfigError, OutOfMemoryError, StateError, TraceError


cdef TLB tlb_of(config):
    return TLB(config.geometry)


cdef class Board:
    """What a :class:`fastmmu.Machine` is made of; the parts of the machine hold it, and it holds none of them."""

    def __cinit__(self):
        cdef Run *run = <Run *> calloc(1, sizeof(Run))
        if run == NULL or kvm_vcpu_create(&self.kvm, &run.vcpu):
            free(run)
            raise OutOfMemoryError("no memory for a vCPU")
        run.clock = &self.clock
        self.turns = Turns()
        self._load(run)

    cdef int unmade(self) except -1:
        if self.config is not None:
            raise StateError("this Machine is made already; make another one")
        return 0

    cdef _build(self, config, bint guest_kernel, GuestState state, slots, place):
        # place: of a Host, which does the VM entry: its memory, where in it, a TLB, its VPIDs
        cdef uint64_t guest_bytes, more
        self.config = config
        self.loop.exit_every = self.loop.until_exit = config.exit_every
        guest_bytes = config.memory_bytes
        slots = tuple(many("slots", slots))
        self.given = guest_kernel, slots
        slots = all_slots(config, guest_kernel, slots)
        self.kvm.modes.ept = config.mmu == "ept"
        self.kvm.modes.amd = config.vendor == "amd"
        self.kvm.modes.unrestricted = config.unrestricted
        self.v.svm = config.vendor == "amd" and config.mmu != "native"
        self.kvm.modes.keys = config.shadows and config.shadow_keys
        self.kvm.modes.pcid = config.shadows and config.rules.shadow_pcid
        if has_identity(config, guest_kernel):
            self.kvm.modes.identity = config.identity_map
        if place is None:
            self.vpids = VpidAllocator()
            self.asids = AsidAllocator(asids=config.asids, min_asid=config.min_asid)
            self.tlb = tlb_of(config)
            placed, more = placed_slots(slots, host_bytes(config))
            self.memory = PhysicalMemory(more)
        else:
            if config.mmu == "agile":
                raise ConfigError('mmu="agile" is of a machine alone, with one CPU, not of a Host or of a trace of '
                                  'several CPUs; use mmu="ept" or "shadow"')
            self.memory, self.origin, self.tlb, self.vpids, self.asids = checked_place(place)
            placed, more = placed_slots(slots, self.origin + host_bytes(config))
            if more > self.memory.mem.nbytes:
                raise ConfigError(f"place={self.origin:#x}: the machine ends at {more:#x}, outside the host's memory "
                                  f"of {self.memory.mem.nbytes:#x} bytes")
        self.behind = more
        self.loop.guest_base = self.origin + host_bytes(config) - guest_bytes
        self.kvm.svm_cpu = self.asids.cpu
        self.guest_mem.base = self.memory.mem.base + self.loop.guest_base
        self.guest_mem.nbytes = guest_bytes
        self.turns = self.tlb.turns
        self.v.mem = &self.memory.mem
        self.v.tlb = self.tlb.t
        if config.find_missing_flushes:
            self.missing_flushes = MissingFlushes(shadow=config.shadows, amd=config.vendor == "amd")
            self.missing_flushes.turns = self.turns
            self.v.detector, self.v.records = self.missing_flushes.w, True
        self.v.handler = kvm_handle
        if state is None:
            state = GuestState(cr4=0xA0 | (1 << 17 if config.pcid else 0), cr3=0, maxphyaddr=46)
        if config.mmu != "native":
            self._offered(state)
        self.v.hw = state.paging
        self.v.hw.write_ad = 1
        if guest_kernel:
            self._boot()
            state = state.replace(cr3=self.kernel.root[0] | (1 if config.pcid else 0))
            self.v.hw = state.paging
            self.v.hw.write_ad = 1
        self.v.hw.root = root_address(&self.v.hw, self.v.hw.cr3)
        self.v.r = state.regs
        self.pdptes_due = state.paging.mode == MODE_PAE and state.pdptes is None
        if config.mmu != "native":
            self._build_vmm(state, placed, more)
        if config.tpr is not None:
            self._init_apic(self.loop)
        if config.exit_log:
            self.exits = ring_of(self.vcpu, config.exit_log)
        if config.caches is not None and place is None:     # those of a Host are its own
            self.caches = CacheHierarchy(config.cache_description)
            self.caches.use_frames(config.host_frames, self.memory.mem.nbytes, config.backing_bytes)
            vcpu_use_caches(self.v, self.caches.c, &self.kvm.mmu.caches)
        self.initial = state

    cdef _offered(self, GuestState state):
        # what KVM does not take as a guest's CR4 later it does not take at first (kvm_is_valid_sregs)
        cdef int rule = modes_cr4(&self.kvm.modes, state.regs.cr4)
        if rule == RULE_CR4_NOT_OFFERED:
            raise ConfigError(f"cr4={state.cr4:#x}: shadow paging does not virtualize protection keys, KVM offers none "
                              "then; clear bit 22, or use shadow_keys=True or mmu='ept'")
        if rule:
            raise ConfigError(f"cr4={state.cr4:#x}: {RULES[rule]}; clear it, or use mmu='native'")

    cdef _boot(self):
        cdef int pages = {"4k": PAGES_4K, "2m": PAGES_2M, "thp": PAGES_THP}[self.config.pages]
        if self.config.premapped and pages == PAGES_THP:
            pages = PAGES_2M                    # what is mapped beforehand is collapsed beforehand
        if kernel_init(&self.kernel, &self.guest_mem, pages, self.config.thp_threshold, self.config.pcid,
                       self.config.kernel_memory == "high"):
            raise OutOfMemoryError(f"no memory for the guest kernel; make memory={self.config.memory!r} smaller")
        frames_choose(&self.kernel, self.config)
        self.kernel.shootdown = {"ipi": SHOOT_IPI, "pv": SHOOT_PV, "invlpgb": SHOOT_INVLPGB}[self.config.shootdown]
        self.kernel.lazy_tlb, self.kernel.flush_ceiling = self.config.lazy_tlb, self.config.flush_ceiling
        self.loop.kernel = &self.kernel
        kernel_load(&self.kernel, self.v, &self.loop.c, &self.loop.process)
        self.kernel.apic = self.config.tpr is not None
        if kernel_boot(&self.kernel):
            self._raise(0)

    cdef int _load(self, Run *run) except -1:
        # this vCPU runs from now on
        if run == self.loop:
            return 0
        if self.loop != NULL and self.v.guest:
            call_put(self.vm, self.vcpu)
        self._take(run)
        if self.initial is not None and self.v.guest:
            call_load(self.vm, self.vcpu)
        return 0

    cdef void _take(self, Run *run):
        self.loop = run
        self.vcpu = &run.vcpu
        self.v = &run.vcpu.cpu
        if self.vcpu.mode == IN_GUEST_MODE and self.vcpu.pcpu != NOWHERE and self.cpus is not None:
            self.tlb = self.cpus[self.vcpu.pcpu]
        if self.initial is not None:
            kernel_load(&self.kernel, self.v, &run.c, &run.process)
        if self.v.log != NULL:
            log_runs(self.vcpu)

    cdef int _init_apic(self, Run *run) except -1:
        # of a vCPU, whose pages lie in front of the VMM's tables, those of further ones behind the machine's slots
        cdef uint32_t number = run.vcpu.index
        cdef uint64_t page = self.behind + VCPU_BYTES * (number - 1) if number else self.origin + VIRTUAL_APIC
        cdef Vcpu *v = &run.vcpu.cpu
        cdef Interrupts *irq = <Interrupts *> calloc(1, sizeof(Interrupts))
        if irq == NULL:
            raise OutOfMemoryError("no memory for the APIC of a vCPU")
        run.vcpu.irq = irq
        config = self.config
        if v.guest:
            memset(self.memory.mem.base + page, 0, VCPU_BYTES)
            irq_init(irq, v, self.memory.mem.base + page, <uint64_t *> (self.memory.mem.base + page + 0x1000))
        else:
            irq_init(irq, v, NULL, NULL)
        irq.clock = &self.clock
        irq.patch.cpu = config.apic_id + number
        apic_reset(&irq.apic, irq.apic.page, irq.patch.cpu)
        irq.way = {"trap": WAY_TRAP, "patch": WAY_PATCH, "flexpriority": WAY_FLEXPRIORITY,
                   "apicv": WAY_APICV}[config.tpr]
        irq.apic_page = config.apic_page == "mapped"
        irq.svm = config.vendor == "amd"
        irq.rule = RULE_SLIDES if config.tpr_threshold == "slides" else RULE_KVM
        irq.handler = HANDLER_IRQL if config.guest_handler == "irql" else HANDLER_EOI
        irq.handler_length = config.handler_length
        irq.tpr_shadow = config.tpr_shadow
        irq.timer_reason = EXIT_PREEMPTION_TIMER if config.rules.preemption_timer else EXIT_EXTERNAL_INTERRUPT
        irq.patch.one_vcpu = config.tpr_patch == "one-vcpu"
        irq.la = APIC_BASE
        if run.kernel != NULL:
            irq.la = GUEST_APIC
            irq.patch.code_la = GUEST_CODE
            patch_use_rom(&irq.patch, &self.memory.mem, GUEST_ROM, run.guest_base + self.kernel.rom_gpa)
        elif self.rom_la:
            patch_use_rom(&irq.patch, &self.memory.mem, self.rom_la, self.rom_hpa)
        if v.guest:
            v.vmcs.virtual_apic_address = page
            v.vmcs.posted_descriptor_address = page + 0x1000
            call_create_lapic(self.vm, &run.vcpu)

    cdef int free_vpid(self, KvmVcpu *vcpu) except -1:
        # it ends, or has not come: its VPID is the host's again, whatever a VMM in Python raises
        try:
            if vcpu.vpid:
                call_free_vpid(self.vm, vcpu, self.vpids)
        finally:
            kvm_vcpu_vpid(vcpu, 0)
        return 0

    cdef _add_slot(self, uint64_t gpa, uint64_t size, uint64_t hpa, host, bint readonly, bint private,
                   bint device, bint emulated):
        cdef int n = slots_add(&self.kvm.mmu.slots, gpa >> 12, size >> 12, hpa)
        cdef Memslot *slot
        if n < 0:
            raise ConfigError(f"slot at {gpa:#x} of {size:#x} bytes " +
                              ("overlaps another" if n == -2 else "is one too many; there are at most 32"))
        slot = &self.kvm.mmu.slots.slot[n]
        slot.readonly = readonly
        slot.private = private
        slot.emulated = emulated
        slot.device = device
        slot.huge = host == "2m"
        if host == "untouched" and slots_untouched(&self.kvm.mmu.slots, n):
            raise OutOfMemoryError(f"no memory for the state of {size >> 12} host pages; make the slot smaller")

    cdef _build_vmm(self, state, placed, uint64_t end):
        cdef bint shadow = self.config.shadows, npt = self.config.vendor == "amd" and not shadow
        cdef SecondLevel tables
        cdef uint64_t root, pointer
        if shadow and self.v.hw.mode < MODE_4 and self.origin + PAE_ROOT >> 32:
            raise ConfigError(f"a shadowed machine at {self.origin:#x} of the host's memory: its PDPTEs must lie below "
                              "4 GB; give the machines before it less by Config(memory=)")
        self.v.vmcs.pml_address = self.origin + PML_LOG
        if mmu_init(&self.kvm.mmu, &self.memory.mem, self.loop.guest_base, end - self.loop.guest_base,
                    FORMAT_PAGING if shadow else FORMAT_NPT if npt else FORMAT_EPT,
                    shadow or npt or self.config.ept_ad, self.origin + VMM_TABLES,
                    shadow_end(self.config, self.origin, self.loop.guest_base)):
            raise OutOfMemoryError(f"no memory for the VMM; make memory={self.config.memory!r} smaller")
        mmu_vcpu_create(&self.kvm.mmu, &self.vcpu.mmu)
        self.kvm.mmu.guest = self.guest_mem
        self.kvm.mmu.pdpt = self.origin + PAE_ROOT
        policy_choose(&self.kvm, self.config, state.maxphyaddr)
        self.kvm.mmu.noncoherent = self.config.noncoherent_dma
        self.kvm.mmu.ignore_cd = self.config.cd_quirk
        self.kvm.mmu.mtrrs = (<GuestState> state).mtrrs.state
        self.kvm.mmu.uncached = state.cr0 >> 30 & 1
        self._add_slot(0, self.guest_mem.nbytes, self.loop.guest_base,
                       "untouched" if self.config.host_pages == "untouched" or self.config.host_memory is not None
                       else self.config.backing, False, False, False, False)
        host_blocks(&self.kvm.mmu.slots.slot[0], self.config, self.memory.mem.nbytes)
        for slot, hpa in placed:
            self._add_slot(slot.gpa, slot.size, hpa, slot.host, slot.readonly, slot.private, slot.device,
                           slot.emulated)
            if slot.gpa == APIC_BASE and slot.private:
                self.v.vmcs.apic_access_address = hpa
        self.kvm.shadow = shadow
        self.v.guest = True
        self.v.vmcs.pin_based = PIN_EXTERNAL_INTERRUPT
        self.v.vmcs.primary = PRIMARY_SECONDARY
        self.v.host_pages = self.config.exit_pages
        self.v.exit_touches = self.v.host_pages != 0
        self.vcpu.arch = self.v.r
        if self.kvm.modes.identity:
            modes_tables(&self.memory.mem, placed[len(placed) - 2][1], placed[len(placed) - 1][1])
        if self.config.vmm != "kernel":
            self.vm = vm_of(self, self.turns, &self.kvm, self.vpids, self.config.rules)
            self.python = self.vm.made(self.config.vmm_class)
        kvm_vcpu_vpid(self.vcpu, call_allocate_vpid(self.vm, self.vcpu, self.vpids, self.config.vpid))
        if shadow:                              # vmx.md §2: with EPT the guest that pages owns all three
            self.v.vmcs.primary |= PRIMARY_CR3_LOAD | PRIMARY_CR3_STORE | PRIMARY_INVLPG
        else:
            if mmu_set_root(&self.kvm.mmu, 0, True):
                raise OutOfMemoryError("no table page for the root of the EPT")
            root = self.kvm.mmu.sp[self.kvm.mmu.vcpu.root].hpa
            # the low bits are those that VM entry checks; nCR3 is the address
            pointer = root | (0x5E if npt or self.config.ept_ad else 0x1E)
            if npt:
                tables = Npt(root, maxphyaddr=46)
            else:
                tables = Eptp(pointer, maxphyaddr=46, guest_ad_checked=self.config.guest_ad_checked)
            self.v.ept = tables.ept
            self.v.ept.write_ad = 1
            self.v.vmcs.secondary |= SECONDARY_EPT
            self.v.vmcs.eptp = pointer
        if self.config.mmu == "agile":
            self.v.ept = agile_build(&self.kvm, self.v, self.config, self.origin, self.loop.guest_base)
        if call_reset(self.vm, self.vcpu):
            self._raise(0)

    def __dealloc__(self):
        cdef uint32_t i
        kernel_free(&self.kernel)
        agile_gone(&self.kvm)
        mmu_free(&self.kvm.mmu)
        for i in range(self.kvm.n_vcpus):
            if self.kvm.vcpu[i].irq != NULL:
                irq_free(self.kvm.vcpu[i].irq)
                free(self.kvm.vcpu[i].irq)
            free(to_run(&self.kvm.vcpu[i].cpu))
        free(self.kvm.vcpu)
        free(self.first)

    # ---- whether the guest may run --------------------------------------------------------------------------

    cdef int made(self) except -1:
        if self.initial is None:
            raise StateError("this Machine is not made: its class must call Machine.__init__")
        if self.kvm.ended:
            has_ended()
        return 0

    cdef Turn take(self):
        # the turn of a call that is right between two events of a guest that runs, too
        cdef Turn turn = self.turns.take()
        if self.kvm.ended:
            has_ended()
        return turn

    cdef Turn _guest_runs(self):
        # the turn of a call that is an instruction of the guest
        cdef Turn turn = self.turns.alone()
        self._on_cpu()
        self._ready()
        self._resumed(0)
        return turn

    cdef int _on_cpu(self) except -1:
        # a host's vCPU runs where Host.place has put it; a VM entry that failed is tried again
        self.made()
        if self.first != NULL and self.vcpu.mode == OUTSIDE_GUEST_MODE:
            raise StateError(f"vCPU {int(self.vcpu.index)} of this machine is on no CPU, or has ended; Host.place puts "
                             "one on a CPU")
        if self.v.outside and call_enter_again(self.vcpu):
            self._raise(0)
        return 0

    cdef int _resumed(self, uint64_t n) except -1:
        # what its guest kernel owes before the next instruction
        if self.loop.kernel != NULL and kernel_resume(&self.kernel):
            self._raise(n)
        return 0

    cdef _ready(self):
        self.made()
        if self.pdptes_due:
            self._first_pdptes()
        self.v.now += 1                         # each call is an event, where nothing else numbers them

    cdef uint64_t _events(self, op, size, addr, out, first) except? 0:
        # events of a trace, chunk by chunk, in a long call that has begun; no result depends on the chunks
        cdef const uint8_t[::1] ops = bytes_in("op", op, TraceError), sizes = bytes_in("size", size, TraceError)
        cdef const uint64_t[::1] addrs = words_in("addr", addr, TraceError)
        cdef uint64_t[::1] gpas = None
        cdef uint64_t n = addrs.shape[0], done = 0, number = word("first", first), chunk, did
        cdef uint64_t *to = NULL
        cdef Pace pace
        if <uint64_t> ops.shape[0] != n or <uint64_t> sizes.shape[0] != n:
            raise TraceError(f"op, size and addr have different lengths: {ops.shape[0]}, {sizes.shape[0]}, {n}")
        if out is not None:
            gpas = words_out("out", out, TraceError)
            if <uint64_t> gpas.shape[0] != n:
                raise TraceError(f"out has {gpas.shape[0]} elements, the events are {n}; give as many")
        self._ready()
        if self.loop.kernel == NULL:
            raise ConfigError("a bare guest has no kernel to run a trace on; make the Machine with guest_kernel=True")
        self._resumed(number)
        if n == 0:
            return 0
        if out is not None:
            to = &gpas[0]
            if overlaps(to, n, &self.memory.mem):
                raise TraceError("out overlaps the machine's memory, in which it would destroy tables; give another")
        with nogil:
            pace_begin(&pace)
            while True:
                chunk, self.loop.first = min(n - done, pace.chunk), number + done
                events_begin(self.v.tlb, &ops[done], &addrs[done], number + done, chunk)
                did = run_events(self.loop, &ops[done], &sizes[done], &addrs[done], chunk, to + done if to else NULL)
                events_end(self.v.tlb, number + done, did)
                done, self.events = done + did, self.events + did
                if did < chunk or done == n or self.turns.between(&pace):
                    break
        if self.v.abort:
            self._raise(number + done)
        self.turns.signals()
        return done

    cdef _first_pdptes(self):
        # PDPTE registers that the state leaves open come from memory at CR3, before the guest's first instruction
        cdef Paging paging = self.vcpu.guest if self.kvm.shadow else self.v.hw
        cdef Walk w
        cdef int fault = load_pdptes(&self.guest_mem, &paging, NULL, &w, NULL)
        if fault == FAULT_GP:
            raise StateError(f"cr3={int(paging.cr3):#x}: a present PDPTE there has reserved bits (paging.md §3.2)")
        if fault:
            raise BusError(f"cr3={int(paging.cr3):#x}: its PDPTEs lie outside memory of {self.guest_mem.nbytes:#x} "
                           "bytes")
        self.v.hw.root = root_address(&self.v.hw, self.v.hw.cr3)
        self.pdptes_due = False
        memcpy(self.vcpu.arch.pdpte, paging.pdpte, sizeof(paging.pdpte))
        if not self.kvm.shadow:
            memcpy(self.v.hw.pdpte, paging.pdpte, sizeof(paging.pdpte))
            return
        memcpy(self.vcpu.guest.pdpte, paging.pdpte, sizeof(paging.pdpte))
        if call_load_root(self.vm, self.vcpu):
            self._raise(0)
        self.kvm.mmu.flush = False              # nothing is cached

    cdef _raise(self, uint64_t n):
        cdef object error = self.raised if self.v.abort == ABORT_PYTHON else stop(self.v, self.vcpu.irq, n)
        self.raised = None
        self.v.abort = ABORT_NONE
        raise error

    # ---- results --------------------------------------------------------------------------------------------

    def counters(self):
        """Counters of the vCPU that is loaded, with those of the VM: :meth:`fastmmu.Machine.counters`."""
        cdef Turn _turn = self.take()
        return self._counters(self.loop, NULL if self.v.tlb == NULL else &self.v.tlb.c)

    cdef _counters(self, Run *run, TlbCounters *t):
        self.made()
        found = counters_of(run, t)
        if self.missing_flushes is not None:
            found |= {"uses_compared": self.missing_flushes.uses, "stale_uses": self.missing_flushes.found}
        return found
