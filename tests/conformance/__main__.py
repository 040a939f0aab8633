"""`python -m tests.conformance`: every vector, recorded guest and system trace through each implementation; fails on
any mismatch."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from . import guests, systems, tlbs, vectors, vmx
from .cases import Adapter
from .kernel import BatchAdapter, KernelAdapter
from .spec import SpecAdapter
from .vmx_instructions import INSTRUCTIONS


def named_by(variable: str) -> Path | None:
    """The directory that an environment variable names."""
    return Path(os.environ[variable]) if os.environ.get(variable) else None


def any_vectors(directory: Path) -> bool:
    """Is there anything to compare?"""
    return bool(vectors.sets(directory) or tlbs.sets(directory) or vmx.sets(directory))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--spec", action="store_true", help="only the executable specification")
    parser.add_argument("--kernel", action="store_true", help="only the kernels")
    parser.add_argument("--data", type=Path, help="directory of the sets (default: FASTMMU_VECTORS, else the sample)")
    parser.add_argument("--guests", type=Path, help="directory of guests (default: FASTMMU_GUESTS, else the sample)")
    parser.add_argument(
        "--traces", type=Path, help="directory of system traces (default: FASTMMU_TRACES, else the sample)"
    )
    parser.add_argument("--stride", type=int, default=1, help="take every n-th vector")
    parser.add_argument("--only", default="", help="sets whose name contains this")
    options = parser.parse_args(argv)
    options.data = options.data or named_by("FASTMMU_VECTORS")
    options.guests = options.guests or named_by("FASTMMU_GUESTS")
    options.traces = options.traces or named_by("FASTMMU_TRACES")
    sources = ((options.data, any_vectors), (options.guests, guests.any_data), (options.traces, systems.any_data))
    for named, found in sources:
        if named is not None and not found(named):
            print(f"no set to run in {named}", file=sys.stderr)
            return 2
    directory = options.data or vectors.data_directory()
    if not any_vectors(directory):
        print(f"no vectors in {directory}: the sample in the project is used; FASTMMU_VECTORS names another directory")
        directory = vectors.sample_directory()
    paths = [path for path in vectors.sets(directory) if options.only in path.name]
    tlb_paths = [path for path in tlbs.sets(directory) if options.only in path.name]
    chosen: list[Adapter] = [SpecAdapter()] * (options.spec or not options.kernel)
    chosen += [KernelAdapter(), BatchAdapter()] * (options.kernel or not options.spec)
    mismatches = 0
    for adapter in chosen if paths else ():
        lacking = f" (does not report {', '.join(sorted(adapter.unreported))})" if adapter.unreported else ""
        print(f"{adapter.name}{lacking}:")
        for path in paths:
            begin = time.perf_counter()
            mismatches += vectors.run_set(adapter, path, stride=options.stride).show(begin)
    for mask in vectors.MASKS if paths else ():
        print(f"mask {mask.name}: {mask.why}")
    tlb_owners = [tlbs.SPECIFICATION] * (options.spec or not options.kernel)
    tlb_owners += [tlbs.KERNELS] * (options.kernel or not options.spec)
    mismatches += tlbs.run(tlb_owners, tlb_paths, options.stride)
    apic_paths = [path for path in vmx.sets(directory) if options.only in path.name]
    implementations: list[vmx.Implementation] = [vmx.SPECIFICATION] * (options.spec or not options.kernel)
    implementations += [vmx.KERNEL, INSTRUCTIONS] * (options.kernel or not options.spec)
    mismatches += vmx.run(implementations, apic_paths, options.stride)
    owners = [guests.SPECIFICATION] * (options.spec or not options.kernel)
    owners += [guests.KERNELS] * (options.kernel or not options.spec)
    more = guests.run(owners, options.guests, options.only, options.stride)
    replayed = systems.run(options.traces, options.only) if options.kernel or not options.spec else None
    if not (paths or tlb_paths or apic_paths) and more is None and replayed is None:
        print(f"no set with {options.only!r} in its name", file=sys.stderr)
        return 2
    mismatches += (more or 0) + (replayed or 0)
    return 1 if mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
