/* Counts instructions between two points: requests of the program to Valgrind, nothing where it does not run. */
#include <valgrind/callgrind.h>

int count_running(void) { return RUNNING_ON_VALGRIND; }

void count_begin(void) {
  CALLGRIND_START_INSTRUMENTATION;
  CALLGRIND_ZERO_STATS;
}

void count_end(const char *name) { /* a dump of its own, by this name */
  CALLGRIND_DUMP_STATS_AT(name);
  CALLGRIND_STOP_INSTRUMENTATION;
}
