"""Builds the kernels with AddressSanitizer and UBSan, runs hostile calls and the property tests on them.

    python tools/sanitize.py [--calls 50000] [--no-build]

A report of either ends the process that made it, and this with an error. PYTHONMALLOC=malloc gives each object of
Python memory of its own, so that what is read behind its end is seen. Off are: leaks (CPython leaves its own at exit)
and the order of loading (the interpreter is not built with the library, which is therefore preloaded). Nothing of
fastmmu is suppressed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "sanitize"
SANITIZERS = "-fsanitize=address,undefined"
CFLAGS = f"-O1 -g1 -fno-omit-frame-pointer {SANITIZERS}"
TESTS = [
    "tests/tlb",
    "tests/paging/test_walk_property.py",
    "tests/paging/test_walk_caches.py",
    "tests/paging/test_mappings_hostile.py",
    "tests/paging/test_translate.py",
    "tests/cpu/test_apic.py",
    "tests/cpu/test_vapic.py",
    "tests/kvm/test_properties.py",
    "tests/kvm/test_two_hosts.py",
    "tests/kvm/test_policy_vpid.py",
    "tests/kvm/test_policy_stops.py",
    "tests/machine/test_equivalence.py",
    "tests/machine/test_host.py",
    "tests/machine/test_host_lives.py",
    "tests/machine/test_host_vcpus.py",
    "tests/machine/test_reentrant_vmm.py",
    "tests/mmu/test_notifier.py",
    "tests/trace/test_lackey.py",
    "tests/study/test_curve.py",
]
"""Programs at random on the kernels, beside the specification."""


def library(name: str) -> str:
    """Where the compiler has a library of a sanitizer."""
    cc = os.environ.get("CC", "cc").split()[0]
    return subprocess.run([cc, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()


def environment() -> dict[str, str]:
    """For processes that load the kernels."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(OUT / "lib"), str(ROOT)]),
        "LD_PRELOAD": " ".join([library("libasan.so"), library("libubsan.so")]),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1:detect_odr_violation=0",
        "UBSAN_OPTIONS": "halt_on_error=1:abort_on_error=1:print_stacktrace=1",
    }


def build() -> None:
    variables = {**os.environ, "FASTMMU_CFLAGS": CFLAGS, "LDFLAGS": SANITIZERS}
    where = ["--build-lib", str(OUT / "lib"), "--build-temp", str(OUT)]
    subprocess.run([sys.executable, "setup.py", "-q", "build", *where], cwd=ROOT, env=variables, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--no-build", action="store_true", help="that of the last time")
    args = parser.parse_args()
    if not args.no_build:
        build()
    hostile = ["-m", "tests.support.hostile_calls", "--calls", str(args.calls), "--seed", str(args.seed)]
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "pythonpath=build/sanitize/lib .", *TESTS]
    failed = 0
    for command in (hostile, tests):
        started = time.perf_counter()
        status = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment()).returncode
        print(f"{' '.join(command[1:3])}: status {status} in {time.perf_counter() - started:.0f} s", flush=True)
        failed |= status != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
