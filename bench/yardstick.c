/* The yardstick's functions, to be called on memory that is there already: no files, no process, and so turns of
 * milliseconds. YARDSTICK names its source. Each returns the seconds it took.
 *
 * `tlb_walk` adds to the TLB what a miss costs: a walk, of the guest's tables alone or over EPT.
 */
#define main yardstick_main
#include YARDSTICK
#undef main

double yard_walk(int nested, int group, const u64 *mem, u64 cr3, u64 eptp, const u64 *va, u64 *pa, size_t n) {
  kernel f = nested ? group ? nest_group : nest_scalar : group ? walk_group : walk_scalar;
  double start = now();
  f(mem, cr3, eptp, va, pa, n);
  return now() - start;
}

static int shape(const int *geometry) { /* an empty TLB of sets, ways, sets, ways */
  s1 = geometry[0], w1 = geometry[1], s2 = geometry[2], w2 = geometry[3];
  free(t1), free(t2);
  t1 = calloc((size_t)s1 * w1, 8), t2 = calloc((size_t)s2 * w2, 8);
  return t1 && t2;
}

double yard_tlb(const int *geometry, int warm, const u64 *va, size_t n, u64 *counts) {
  if (!shape(geometry)) return -1;
  if (warm) tlb(va, n);
  double start = now();
  tlb(va, n);
  start = now() - start;
  memcpy(counts, c, sizeof c);
  return start;
}

V tlb_walk(const u64 *mem, u64 cr3, u64 eptp, const u64 *va, size_t n, u64 *sum) {
  u64 a = 0, b = 0, m = 0, s = 0;
  for (size_t i = 0; i < n; i++) {
    u64 p = va[i] >> 12, v = p + 1;
    if (touch(t1 + (p & (s1 - 1)) * w1, w1, v)) a++;
    else if (touch(t2 + (p & (s2 - 1)) * w2, w2, v)) b++;
    else m++, s += eptp ? nest(mem, cr3, eptp, va[i]) : walk(mem, cr3, va[i]);
  }
  c[0] = a, c[1] = b, c[2] = m, *sum = s;
}

double yard_tlb_walk(const int *geometry, const u64 *mem, u64 cr3, u64 eptp, const u64 *va, size_t n, u64 *counts) {
  if (!shape(geometry)) return -1;
  tlb(va, n);
  double start = now();
  tlb_walk(mem, cr3, eptp, va, n, counts + 3);
  start = now() - start;
  memcpy(counts, c, sizeof c);
  return start;
}
