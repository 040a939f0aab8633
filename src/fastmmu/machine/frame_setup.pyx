"""The frames of a guest kernel and its huge pages, set up before it boots; header: frame_setup.pxd."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport malloc

from fastmmu.machine.frames cimport FRAMES_FIRST_TOUCH, FRAMES_OF, LayoutRun, frames_init, frames_watch
from fastmmu.machine.kernel_state cimport (
    BLOCK, DEFRAG_ALWAYS, DEFRAG_DEFER, DEFRAG_MADVISE, PAGES_POLICY, GuestKernel,
)

from fastmmu.errors import OutOfMemoryError
from fastmmu.machine.frame_plan import frame_plan, recorded_runs
from fastmmu.machine.thp_plan import thp_plan


cdef int frames_choose(GuestKernel *k, config) except -1:
    # The tables' blocks take the 64th part of memory, two at least; behind the unused block.
    cdef uint64_t blocks = k.guest.nbytes // BLOCK
    if config.thp is not None:
        choose_thp(k, thp_plan(config.thp))
    plan = frame_plan(config.frames)
    cdef int policy = plan.number
    if policy == FRAMES_FIRST_TOUCH:
        return 0
    if frames_init(&k.frames, policy, (1 + max(<uint64_t> 2, blocks // 64)) * BLOCK, k.guest.nbytes, plan.unusable,
                   plan.seed, plan.group):
        raise OutOfMemoryError(f"no memory for the guest's frames; make memory={config.memory!r} smaller")
    if config.defrag != "never":
        k.thp.defrag = {"madvise": DEFRAG_MADVISE, "defer": DEFRAG_DEFER, "always": DEFRAG_ALWAYS}[config.defrag]
        if frames_watch(&k.frames, config.unmovable, plan.seed):
            raise OutOfMemoryError(f"no memory for who has each frame; make memory={config.memory!r} smaller")
    if policy == FRAMES_OF:
        record(k, recorded_runs(plan.path))
    return 0


cdef int choose_thp(GuestKernel *k, plan) except -1:
    k.pages = PAGES_POLICY
    k.thp.mode = plan.number
    k.thp.scan_pages, k.thp.scan_every, k.thp.max_ptes_none = plan.pages, plan.every, plan.none
    k.thp.scan_left = k.thp.scan_every
    return 0


cdef int record(GuestKernel *k, list runs) except -1:
    cdef uint64_t i = 0, pages, frame
    k.frames.run = <LayoutRun *> malloc(len(runs) * sizeof(LayoutRun))
    if k.frames.run == NULL:
        raise OutOfMemoryError("no memory for the pages of a recorded guest")
    for pages, frame in runs:
        k.frames.run[i].page, k.frames.run[i].frame = k.frames.pages, frame
        k.frames.pages += pages
        i += 1
    k.frames.runs = i
    return 0
