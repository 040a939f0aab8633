# A permutation of the numbers 0..n-1 by a key, without a table: a Feistel network of four rounds over the next even
# power of two (Luby and Rackoff, SIAM J. Comput. 1988), walked until a number is below n (Black and Rogaway, "Ciphers
# with Arbitrary Finite Domains", CT-RSA 2002). Rounds mix as SplitMix64 does (Steele, Lea, Flood, OOPSLA 2014).

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    ROUNDS = 4

cdef struct Permutation:
    uint64_t n                  # 0: none
    uint64_t[4] key
    uint32_t half               # bits of each half


cdef inline uint64_t mix64(uint64_t x) noexcept nogil:
    x = (x ^ (x >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t> 0x94D049BB133111EB
    return x ^ (x >> 31)


cdef inline uint64_t seeded(uint64_t seed, uint64_t i) noexcept nogil:
    # number i of the stream of a seed
    return mix64(seed + (i + 1) * <uint64_t> 0x9E3779B97F4A7C15)


cdef inline void permutation_init(Permutation *p, uint64_t n, uint64_t seed) noexcept nogil:
    # n: up to 2**62
    cdef int i
    p.n = n
    p.half = 0
    while (<uint64_t> 1 << 2 * p.half) < n:
        p.half += 1
    for i in range(ROUNDS):
        p.key[i] = seeded(seed, <uint64_t> i)


cdef inline uint64_t permuted(const Permutation *p, uint64_t i) noexcept nogil:
    # where i, below n, goes to
    cdef uint64_t left, right, mask = (<uint64_t> 1 << p.half) - 1
    cdef int r
    while True:
        left = i >> p.half
        right = i & mask
        for r in range(0, ROUNDS, 2):
            left ^= mix64(right ^ p.key[r]) & mask
            right ^= mix64(left ^ p.key[r + 1]) & mask
        i = left << p.half | right
        if i < p.n:
            return i


cdef inline uint64_t permuted_back(const Permutation *p, uint64_t i) noexcept nogil:
    # what goes to i
    cdef uint64_t left, right, mask = (<uint64_t> 1 << p.half) - 1
    cdef int r
    while True:
        left = i >> p.half
        right = i & mask
        for r in range(ROUNDS - 2, -1, -2):
            right ^= mix64(left ^ p.key[r + 1]) & mask
            left ^= mix64(right ^ p.key[r]) & mask
        i = left << p.half | right
        if i < p.n:
            return i
