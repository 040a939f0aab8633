"""Frames of the host's memory, permuted; header: frame_map.pxd."""

from libc.math cimport floor
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastmmu._arguments cimport shown, whole, words_in
from fastmmu.arch.permutation cimport permutation_init

import re

import numpy as np

from fastmmu.errors import ConfigError

__all__ = ["host_frame_plan", "map_frames"]


def host_frame_plan(text):
    """What ``Config(host_frames=)`` says: (share of the blocks of 2 MB that are broken or None: linear, seed).

    :raises ConfigError: it is none of ``"linear"``, ``"shuffled"``, ``"shuffled:SEED"``, ``"buddy:F"``,
        ``"buddy:F:SEED"``.
    """
    found = re.fullmatch(r"(linear)|shuffled(?::([0-9]{1,18}))?|buddy:([0-9.]{1,18})(?::([0-9]{1,18}))?", text) \
        if isinstance(text, str) else None
    if found is not None and found[1]:
        return None, 0
    if found is not None and not found[3]:
        return 1.0, int(found[2] or 0)
    try:
        share = float(found[3]) if found is not None else 2.0
    except ValueError:
        share = 2.0
    if share > 1:
        raise ConfigError(f"host_frames={shown(text)}: choose from 'linear', 'shuffled', 'shuffled:SEED', 'buddy:F', "
                          "'buddy:F:SEED' with F from 0 to 1")
    return share, int(found[4] or 0)


cdef int frame_map_init(FrameMap *m, object text, uint64_t nbytes, uint32_t shift) except -1:
    # nbytes: of the host's memory. Pages of 2 MB stay whole
    share, seed = host_frame_plan(text)
    cdef uint64_t blocks = nbytes >> 21
    memset(m, 0, sizeof(FrameMap))
    if share is None or not blocks:
        return 0
    m.nbytes, m.shift = blocks << 21, shift
    if shift == 12:
        m.broken = <uint64_t> floor(<double> share * <double> blocks + 0.5) << 9
    permutation_init(&m.blocks, blocks, seed)
    permutation_init(&m.pages, m.broken, seed + 1)
    return 0


def map_frames(text, nbytes, page, hpa):
    """Where host-physical addresses lie for the caches of a machine with ``Config(host_frames=text)``.

    :param nbytes: of the host's memory. :param page: bytes of its pages, 4096 or 2097152. :param hpa: uint64 array.
    :returns: a uint64 array, of a permutation of all addresses.
    :raises ConfigError: a text that is none, another size of pages.
    """
    cdef FrameMap m
    cdef uint64_t i
    cdef const uint64_t[::1] of = words_in("hpa", hpa, ConfigError)
    page = whole("page", page)
    if page not in (1 << 12, 1 << 21):
        raise ConfigError(f"page={shown(page)}: pages of a host are of 4096 or 2097152 bytes")
    nbytes = whole("nbytes", nbytes)
    if not 0 <= nbytes <= 1 << 52:
        raise ConfigError(f"nbytes={shown(nbytes)}: a host's memory has at most 2**52 bytes")
    frame_map_init(&m, text, nbytes, 12 if page == 1 << 12 else 21)
    found = np.empty(of.shape[0], np.uint64)
    cdef uint64_t[::1] to = found
    with nogil:
        for i in range(<uint64_t> of.shape[0]):
            to[i] = frame_map_apply(&m, of[i])
    return found
