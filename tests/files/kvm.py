"""Logs of KVM against the number of their events, exits by reason, faulting pages and codes (`expected.json`).

A table of `perf kvm stat` holds sums alone: it is right to refuse it by that name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastmmu import FastmmuError, KvmLog, read_kvm_log
from tests.files import Result


def results(folder: Path) -> Iterator[Result]:
    """One for each file of which something is expected."""
    expected: dict[str, dict[str, Any]] = json.loads((folder / "expected.json").read_text())
    for name, right in sorted(expected.items()):
        yield result(folder / name, right)


def result(path: Path, right: dict[str, Any]) -> Result:
    """What a file comes to."""
    try:
        log = read_kvm_log(path)
    except FastmmuError as error:
        said = str(error).replace(f"{path}", "").lstrip(":, ")
        return Result(path.name, "total" in right and "a table of `perf kvm stat`" in said, f"refused: {said}")
    got = counts(log)
    wanted = {name: right.get(name) for name in got}
    text = f"{len(log.exits)} exits, {len(log.faults)} page faults of {log.pages} pages"
    return Result(path.name, got == wanted, text + ("" if got == wanted else f"; {got}, right: {wanted}"))


def counts(log: KvmLog) -> dict[str, Any]:
    """As expected.json has them; its pages and codes are those of kvm_page_fault alone."""
    told = log.faults if log.faults_from == "kvm_page_fault" else log.faults[:0]
    codes, times = np.unique(told["code"], return_counts=True)
    return {
        "events": log.events,
        "exits": {name: n for name, n in log.by_reason().items() if n},
        "distinct_faulting_gfns": len(np.unique(told["address"] >> np.uint64(12))),
        "page_fault_error_codes": {f"{code:#x}": n for code, n in zip(codes.tolist(), times.tolist(), strict=True)},
    }
