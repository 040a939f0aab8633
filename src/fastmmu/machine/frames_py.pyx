"""What of a guest's memory is free, and how contiguous its programs' pages are, for Python."""

import numpy as np

from libc.stdint cimport uint32_t

from fastmmu._arguments cimport many, within
from fastmmu.machine.board cimport Board
from fastmmu.machine.buddy cimport ORDERS
from fastmmu.machine.frames cimport FRAMES_FIRST_TOUCH
from fastmmu.machine.machine cimport Machine
from fastmmu.threads.turns cimport Turn

from fastmmu.errors import StateError
from fastmmu.paging.contiguity import Contiguity, contiguity
from fastmmu.paging.mappings import iter_mappings

__all__ = ["buddyinfo", "program_runs", "unusable_index"]


def buddyinfo(Machine machine not None):
    """Free chunks of the frames of programs, by order: of 4 KB, 8 KB, ... 2 MB, as /proc/buddyinfo has them.

    :returns: a tuple of 10 numbers; None with ``frames="first-touch"``, which keeps no such lists.
    :raises StateError: the machine has no guest kernel of fastmmu.
    """
    cdef Board board = machine.board
    cdef Turn _turn = board.take()
    cdef int order
    if board.loop.kernel == NULL:
        raise StateError("a machine without the guest kernel has no frames of programs; make it with Machine(config)")
    if board.kernel.frames.policy == FRAMES_FIRST_TOUCH:
        return None
    return tuple([board.kernel.frames.buddy.chunks[order] for order in range(ORDERS)])


def program_runs(Machine machine not None):
    """How contiguous the pages of all processes are, in guest-physical memory, as the guest's tables stand now.

    :returns: a :class:`fastmmu.Contiguity`; a page that processes share counts for each.
    :raises StateError: the machine has no guest kernel of fastmmu.
    """
    cdef Board board = machine.board
    cdef uint32_t i
    cdef Turn _turn = board.take()
    if board.loop.kernel == NULL:
        raise StateError("a machine without the guest kernel runs no programs; make it with Machine(config)")
    roots = [int(board.kernel.root[i]) for i in range(board.kernel.n_roots) if board.kernel.root[i]]
    memory, state = machine.guest_memory, machine.state
    found = [contiguity(iter_mappings(memory, state.replace(cr3=root), stop=1 << 47)) for root in roots]
    lengths, at = np.unique(np.concatenate([each.lengths for each in found]), return_inverse=True)
    runs = np.zeros(len(lengths), np.int64)
    np.add.at(runs, at.reshape(-1), np.concatenate([each.runs for each in found]))
    return Contiguity(lengths, runs)


def unusable_index(chunks, order=9):
    """Share of free memory that no chunk of 2**order frames has: the unusable free space index, or FMFI (Gorman and
    Whitcroft, 2005; docs/frames.md); 0 where nothing is free.

    :param chunks: free chunks by order, as of :func:`buddyinfo`; up to 10.
    """
    found = many("chunks", chunks)
    sizes = [within("chunks", n, 0, 1 << 48) << i for i, n in enumerate(found[:ORDERS])]
    return sum(sizes[:within("order", order, 0, ORDERS)]) / sum(sizes) if sum(sizes) else 0.0
