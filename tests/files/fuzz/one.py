"""`python -m tests.files.fuzz.one READER RUNS COUNT CORPUS WRONG`: fuzzes one reader; COUNT is a file of 8 bytes."""

from __future__ import annotations

import importlib
import mmap
import os
import pkgutil
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

import tests.files.fuzz as our

_INSTRUMENTED = ("fastmmu.trace", "fastmmu.image")


def instrumented() -> None:
    """Loads the readers, such that the fuzzer sees which of their branches are taken."""
    with atheris.instrument_imports(include=list(_INSTRUMENTED)):
        for name in _INSTRUMENTED:
            for module in pkgutil.iter_modules(importlib.import_module(name).__path__):
                importlib.import_module(f"{name}.{module.name}")


def target(name: str, counted: mmap.mmap) -> tuple[Callable[[bytes], None], Path]:
    """What the fuzzer calls with an input, and the folder that it writes to."""
    from fastmmu.errors import FastmmuError
    from tests.files.fuzz.readers import READERS

    reader = READERS[name]
    place = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    path = place / "t"

    def one(data: bytes) -> None:
        struct.pack_into("<Q", counted, 0, struct.unpack_from("<Q", counted)[0] + 1)
        path.write_bytes(data)
        try:
            reader.read(path)
        except FastmmuError as error:
            str(error)

    return one, place


def main(name: str, runs: str, count: str, corpus: str, wrong: str) -> None:
    instrumented()
    from tests.files.fuzz.readers import READERS

    with open(count, "r+b") as file:
        counted = mmap.mmap(file.fileno(), 8)
    one, place = target(name, counted)
    options = [f"-runs={runs}", f"-timeout={our.SECONDS}", f"-rss_limit_mb={our.MEGABYTES}", "-use_value_profile=1",
               f"-max_len={READERS[name].most}", f"-artifact_prefix={wrong}/", "-print_final_stats=1"]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, corpus], one)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
