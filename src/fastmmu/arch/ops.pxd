# Operations of a trace event, fastmmu.ops.Op; accesses are those of arch/types.pxd (Access).

cdef enum EventOp:
    OP_READ = 0
    OP_WRITE = 1
    OP_MODIFY = 2
    OP_FETCH = 3
    OP_SWITCH = 16
    OP_INVLPG = 17
    OP_UNMAP = 18
    OP_EXIT = 19
    OP_INTERRUPT = 20
    OP_APIC_READ = 21
    OP_APIC_WRITE = 22
    OP_CR8_READ = 23
    OP_CR8_WRITE = 24
    OP_MSR_READ = 25
    OP_MSR_WRITE = 26
    OP_INTERRUPT_FLAG = 27
    OP_DEVICE_INTERRUPT = 28
    OP_IPI = 29
    OP_TSC_DEADLINE = 30
    OP_PLACE = 31
    OP_MUNMAP = 48
    OP_PROTECT = 49
    OP_UNPROTECT = 50
    OP_FORK = 51
    OP_COLLAPSE = 52
    OP_MADVISE_HUGE = 53
    OP_MADVISE_NOHUGE = 54

cdef enum GuestOp:              # fastmmu.ops.GuestOp: of guests that fastmmu.vmx runs
    GUEST_MOV_TO_CR0 = 32
    GUEST_MOV_TO_CR3 = 33
    GUEST_MOV_TO_CR4 = 34
    GUEST_MOV_FROM_CR0 = 35
    GUEST_MOV_FROM_CR3 = 36
    GUEST_MOV_FROM_CR4 = 37
    GUEST_CLTS = 38
    GUEST_LMSW = 39
    GUEST_INVPCID = 40
    GUEST_WRPKRU = 41
    GUEST_CPL = 42
    GUEST_EVENT_READ = 43
    GUEST_EVENT_WRITE = 44

cdef enum:
    LAST_ACCESS = OP_FETCH
    FIRST_OF_APIC = OP_APIC_READ
    LAST_OF_APIC = OP_TSC_DEADLINE
