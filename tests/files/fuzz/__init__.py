"""`python -m tests.files.fuzz`, `make fuzz`: every reader of traces, images and logs under atheris, guided by coverage.

    readers     what is fuzzed: a reader each, with its first inputs and what it does with one
    one         a process that fuzzes one reader, and counts its inputs
    __main__    goes round the readers until so many inputs are done; what was done before counts

Right is what a reader gives or an error of `fastmmu.errors`; anything else, more than `SECONDS` or more than
`MEGABYTES` for one input is wrong. Inputs that reached something new are kept below `build/fuzz/READER/corpus`, those
that went wrong in `build/fuzz/READER/wrong`. Small ones of both are in `tests/data/fuzz`, and tests/files/test_fuzz.py
reads them all.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["KEPT", "MEGABYTES", "PLACE", "SECONDS"]

SECONDS = 20  # of one input, on a busy machine
MEGABYTES = 640  # of the process, of which Python and the libraries take some 300
KEPT = Path(__file__).parents[2] / "data" / "fuzz"
PLACE = Path(__file__).parents[3] / "build" / "fuzz"
