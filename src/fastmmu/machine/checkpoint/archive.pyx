"""What is written of a machine, or read: words by name, arrays, large memory of which little is in use."""

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from fastmmu.errors import CheckpointError

cdef uint64_t ANY = ~(<uint64_t> 0)
_CHUNKS = 1 << 18               # pages that are looked at together


cdef class _Archive:
    """The state of a machine on its way to a file, or back."""

    def __init__(self, dict arrays=None, names=()):
        self.loading = arrays is not None
        self.arrays = {} if arrays is None else arrays
        self.names, self.values = list(names), []
        self.prefix = ""
        if self.loading:
            self.values = self.array("words", np.uint64).tolist()
            if len(self.values) != len(self.names):
                self.refuse("its words are more or fewer than their names")

    def finished(self):
        """The names of the words; what is read has no others."""
        if not self.loading:
            self.arrays["words"] = np.array(self.values, np.uint64)
        elif self.at != len(self.names):
            self.refuse(f"{self.names[self.at]} belongs to no machine of this configuration")
        return self.names

    cdef int refuse(self, str why) except -1:
        raise CheckpointError(f"damaged: {why}")

    cdef void under(self, str prefix):
        self.prefix = prefix + "."

    # ---- words ------------------------------------------------------------------------------------------------

    cdef int word(self, str name, uint64_t *p, uint64_t least, uint64_t most) except -1:
        cdef uint64_t value
        name = self.prefix + name
        if not self.loading:
            self.names.append(name)
            self.values.append(p[0])
            return 0
        if self.at >= len(self.names) or self.names[self.at] != name:
            self.refuse(f"{name} is not where a machine of this configuration has it")
        value = self.values[self.at]
        self.at += 1
        if not least <= value <= most:
            self.refuse(f"{name}={value} is outside {least}..{most}")
        p[0] = value
        return 0

    cdef int u8(self, str name, uint8_t *p, uint64_t most=0xFF) except -1:
        cdef uint64_t value = p[0]
        self.word(name, &value, 0, most)
        p[0] = <uint8_t> value
        return 0

    cdef int u16(self, str name, uint16_t *p, uint64_t most=0xFFFF) except -1:
        cdef uint64_t value = p[0]
        self.word(name, &value, 0, most)
        p[0] = <uint16_t> value
        return 0

    cdef int u32(self, str name, uint32_t *p, uint64_t most=0xFFFFFFFF) except -1:
        cdef uint64_t value = p[0]
        self.word(name, &value, 0, most)
        p[0] = <uint32_t> value
        return 0

    cdef int u64(self, str name, uint64_t *p, uint64_t most=ANY) except -1:
        return self.word(name, p, 0, most)

    cdef int number(self, str name, int *p, int least, int most) except -1:
        # least: -1 or more
        cdef uint64_t value = <uint64_t> (<int64_t> p[0] + 1)
        self.word(name, &value, <uint64_t> (least + 1), <uint64_t> (most + 1))
        p[0] = <int> (<int64_t> value - 1)
        return 0

    cdef int flag(self, str name, bint *p) except -1:
        cdef uint64_t value = p[0] != 0
        self.word(name, &value, 0, 1)
        p[0] = value != 0
        return 0

    cdef int same(self, str name, uint64_t value) except -1:
        cdef uint64_t found = value
        self.word(name, &found, 0, ANY)
        if found != value:
            self.refuse(f"{self.prefix}{name}={found:#x}, and a machine of this configuration has {value:#x}")
        return 0

    # ---- arrays -----------------------------------------------------------------------------------------------

    cdef object put(self, str name, array):
        self.arrays[self.prefix + name] = array
        return array

    cdef object array(self, str name, dtype, n=None):
        # one-dimensional, of this type; n: its length, None: any
        name = self.prefix + name
        found = self.arrays.get(name)
        if not isinstance(found, np.ndarray):
            self.refuse(f"{name} is missing")
        if found.dtype != np.dtype(dtype) or found.ndim != 1 or not found.flags.c_contiguous:
            self.refuse(f"{name} is no array of {np.dtype(dtype)}")
        if n is not None and len(found) != n:
            self.refuse(f"{name} has {len(found)} elements, not {n}")
        return found

    cdef int plain(self, str name, void *p, uint64_t n) except -1:
        cdef const uint8_t[::1] found
        cdef uint8_t[::1] out
        if self.loading:
            found = self.array(name, np.uint8, n)
            if n:
                memcpy(p, &found[0], n)
        else:
            out = self.put(name, np.empty(n, np.uint8))
            if n:
                memcpy(&out[0], p, n)
        return 0

    cdef int sparse(self, str name, void *p, uint64_t n) except -1:
        # n bytes, in pages of 4096 from p on, those that are not zero; the last may be shorter. Of memory that the host
        # has not given yet nothing is touched.
        cdef uint8_t *base = <uint8_t *> p
        cdef const uint64_t[::1] number
        cdef const uint8_t[::1] data
        cdef uint64_t i, pages = (n + 4095) >> 12, before = 0
        used = used_pages(base, n)
        if not self.loading:
            self.put(name + ".page", used)
            self.put(name + ".data", copied(base, n, used))
            return 0
        found = self.array(name + ".page", np.uint64)
        number = found
        data = self.array(name + ".data", np.uint8, len(found) << 12)
        for i in range(<uint64_t> len(found)):
            if number[i] >= pages or (i and number[i] <= before):
                self.refuse(f"{self.prefix}{name} has no page {number[i]} there")
            before = number[i]
        for i in range(<uint64_t> len(found)):
            if any_but_zero(&data[i << 12], n - (number[i] << 12), 4096):
                self.refuse(f"{self.prefix}{name} ends within page {number[i]}")
        gone = np.setdiff1d(used, found, assume_unique=True)
        number = gone
        for i in range(<uint64_t> len(gone)):
            memset(base + (number[i] << 12), 0, min(<uint64_t> 4096, n - (number[i] << 12)))
        number = found
        for i in range(<uint64_t> len(found)):
            memcpy(base + (number[i] << 12), &data[i << 12], min(<uint64_t> 4096, n - (number[i] << 12)))
        return 0


cdef bint any_but_zero(const uint8_t *p, uint64_t first, uint64_t end) noexcept:
    cdef uint64_t i
    for i in range(first, end):
        if p[i]:
            return True
    return False


cdef bint zeros(const uint8_t *p, uint64_t n) noexcept:
    # n: of a page, or what is left of it
    cdef const uint64_t *word = <const uint64_t *> p
    cdef uint64_t i
    for i in range(n >> 3):
        if word[i]:
            return False
    return not any_but_zero(p, n & ~<uint64_t> 7, n)


cdef object used_pages(uint8_t *base, uint64_t n):
    # numbers of the pages from base on that are not zero
    cdef uint64_t pages = (n + 4095) >> 12, first, count, i, k = 0
    cdef const uint8_t[::1] there
    cdef uint64_t[::1] out
    found = []
    for first in range(0, pages, <uint64_t> _CHUNKS):
        count = min(<uint64_t> _CHUNKS, pages - first)
        there = given_pages(<uintptr_t> base + (first << 12), count)
        kept = np.empty(int(np.count_nonzero(there)), np.uint64)
        out, k = kept, 0
        for i in range(count):
            if there[i] and not zeros(base + (first + i << 12), min(<uint64_t> 4096, n - (first + i << 12))):
                out[k] = first + i
                k += 1
        if k:
            found.append(kept[:k])
    return np.concatenate(found) if found else np.empty(0, np.uint64)


cdef object given_pages(address, count):
    # Whether the host may have given memory for each of `count` pages of 4096 bytes from an address on, which need not
    # be a multiple: array of uint8. Linux tells (/proc/self/pagemap: present, or swapped); elsewhere all may be.
    first, last = address >> 12, (address + (count << 12) - 1) >> 12
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(8 * first)
            data = file.read(8 * (last - first + 1))
    except OSError:
        data = b""
    if len(data) != 8 * (last - first + 1):
        return np.ones(count, np.uint8)
    there = (np.frombuffer(data, np.uint64) >> np.uint64(62) != 0).view(np.uint8)
    return there if len(there) == count else there[:count] | there[1:]


cdef object copied(uint8_t *base, uint64_t n, used):
    cdef const uint64_t[::1] number = used
    cdef uint64_t i, many = len(used)
    cdef uint8_t[::1] out
    found = np.zeros(many << 12, np.uint8)
    out = found
    for i in range(many):
        memcpy(&out[i << 12], base + (number[i] << 12), min(<uint64_t> 4096, n - (number[i] << 12)))
    return found
