# What every change of an entry must keep. Checked by a build with FASTMMU_CHECKS=1 (setup.py) alone; one that is broken
# ends the process with a message.

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #if FASTMMU_CHECKS
    #include <stdio.h>
    #include <stdlib.h>
    #define FM_CHECKS 1
    #define FM_INVARIANT(holds, rule, old, now, level) \\
        do { \\
            if (!(holds)) { \\
                fprintf(stderr, "fastmmu: %s: not kept: %s (entry %#llx, becomes %#llx, level %d)\\n", __FILE__, \\
                        rule, (unsigned long long)(old), (unsigned long long)(now), (int)(level)); \\
                abort(); \\
            } \\
        } while (0)
    #else
    #define FM_CHECKS 0
    #define FM_INVARIANT(holds, rule, old, now, level) ((void)0)
    #endif
    """
    const bint CHECKS "FM_CHECKS"
    void invariant "FM_INVARIANT"(bint holds, const char *rule, uint64_t old, uint64_t new, int level) noexcept nogil
