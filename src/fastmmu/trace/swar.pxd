# Characters of text taken together: eight in a word of 64 bits, the first of them lowest; a whole number.

from libc.stdint cimport uint8_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    /* Little-endian loads, so that the first character is the lowest byte on every host. */
    static inline uint64_t fm_load64(const uint8_t *p) {
        uint64_t w; memcpy(&w, p, 8);
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        w = __builtin_bswap64(w);
    #endif
        return w;
    }
    #if defined(_MSC_VER) && !defined(__clang__)
    #include <intrin.h>
    static inline unsigned fm_ctz64(uint64_t w) { unsigned long i; _BitScanForward64(&i, w); return (unsigned)i; }
    static inline uint64_t fm_bswap64(uint64_t w) { return _byteswap_uint64(w); }
    #define fm_unlikely(x) (x)
    #else
    #define fm_ctz64(w) ((unsigned)__builtin_ctzll(w))
    #define fm_bswap64(w) __builtin_bswap64(w)
    #define fm_unlikely(x) __builtin_expect(!!(x), 0)
    #endif

    #define FM_LANES(c) (0x0101010101010101ULL * (uint8_t)(c))

    /* 0x80 in the lowest zero byte of w, nothing below it (what lies above is not to be used). */
    static inline uint64_t fm_zero_byte(uint64_t w) { return (w - FM_LANES(0x01)) & ~w & FM_LANES(0x80); }

    /* 0x80 in every byte of w that is no hexadecimal digit. */
    static inline uint64_t fm_not_hex(uint64_t w) {
        uint64_t c = w & FM_LANES(0x7f), lower = c | FM_LANES(0x20);
        uint64_t digit = (c + FM_LANES(0x80 - '0')) & ~(c + FM_LANES(0x7f - '9'));
        uint64_t letter = (lower + FM_LANES(0x80 - 'a')) & ~(lower + FM_LANES(0x7f - 'f'));
        return (w | ~(digit | letter)) & FM_LANES(0x80);
    }

    /* Eight hexadecimal digits, most significant first in memory, to their 32-bit value. */
    static inline uint64_t fm_hex8(uint64_t w) {
        uint64_t n = (w & FM_LANES(0x0f)) + ((w >> 6) & FM_LANES(0x01)) * 9;
        n = fm_bswap64(n);
        n = (n | (n >> 4)) & 0x00FF00FF00FF00FFULL;
        n = (n | (n >> 8)) & 0x0000FFFF0000FFFFULL;
        return (n | (n >> 16)) & 0xFFFFFFFFULL;
    }

    /* Where a word of 1 to 16 hexadecimal digits ends, and its value; NULL: there is none. Reads 17 bytes. Without a
       branch on the number of digits, which no processor predicts. */
    #if defined(__SSE2__)
    #include <emmintrin.h>
    static inline const uint8_t *fm_hex_word(const uint8_t *p, uint64_t *value) {
        __m128i x = _mm_loadu_si128((const __m128i *)p);
        __m128i d = _mm_sub_epi8(x, _mm_set1_epi8('0'));
        __m128i l = _mm_sub_epi8(_mm_or_si128(x, _mm_set1_epi8(0x20)), _mm_set1_epi8('a'));
        __m128i is_digit = _mm_cmpeq_epi8(_mm_min_epu8(d, _mm_set1_epi8(9)), d);
        __m128i is_letter = _mm_cmpeq_epi8(_mm_min_epu8(l, _mm_set1_epi8(5)), l);
        __m128i nibble = _mm_or_si128(_mm_and_si128(is_digit, d),
                                      _mm_and_si128(is_letter, _mm_add_epi8(l, _mm_set1_epi8(10))));
        unsigned other = ~(unsigned)_mm_movemask_epi8(_mm_or_si128(is_digit, is_letter)) | 0x10000u;
        unsigned n = fm_ctz64(other);
        __m128i byte = _mm_and_si128(_mm_or_si128(_mm_slli_epi16(nibble, 4), _mm_srli_epi16(nibble, 8)),
                                     _mm_set1_epi16(0xff));
        uint64_t all = fm_bswap64((uint64_t)_mm_cvtsi128_si64(_mm_packus_epi16(byte, byte)));
        if (fm_unlikely(n - 1 > 14) && (n == 0 || !(fm_not_hex(p[16] | FM_LANES('0') << 8) & 0x80)))
            return NULL;
        *value = all >> (64 - 4 * n);
        return p + n;
    }
    #else
    static inline const uint8_t *fm_hex_word(const uint8_t *p, uint64_t *value) {
        uint64_t found = 0;
        int n = 0;
        for (; n < 17 && !(fm_not_hex(p[n] | FM_LANES('0') << 8) & 0x80); n++)
            found = found << 4 | ((p[n] & 15) + (p[n] >> 6 & 1) * 9);
        *value = found;
        return n == 0 || n == 17 ? NULL : p + n;
    }
    #endif
    """
    uint64_t load64 "fm_load64"(const uint8_t *p) noexcept nogil
    unsigned ctz64 "fm_ctz64"(uint64_t w) noexcept nogil
    bint unlikely "fm_unlikely"(bint x) noexcept nogil
    uint64_t LANES "FM_LANES"(int c) noexcept nogil
    uint64_t zero_byte "fm_zero_byte"(uint64_t w) noexcept nogil
    uint64_t not_hex "fm_not_hex"(uint64_t w) noexcept nogil
    uint64_t hex8 "fm_hex8"(uint64_t w) noexcept nogil
    const uint8_t *hex_word "fm_hex_word"(const uint8_t *p, uint64_t *value) noexcept nogil
