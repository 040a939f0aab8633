"""Contiguity of an address space for people and files: runs of pages by powers of two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmmu.paging.contiguity import Contiguity

__all__ = ["run_lines", "run_rows"]

SHARES = (8, 64, 512)


def run_rows(found: Mapping[str, Contiguity]) -> list[dict[str, Any]]:
    """Rows for files: of each address space, a row a power of two."""
    return [
        {"addresses": name, "from": low, "to": high, "runs": runs, "pages": pages}
        for name, each in found.items()
        for low, high, runs, pages in each.bins()
    ]


def run_lines(found: Mapping[str, Contiguity]) -> Iterator[str]:
    """A table of each address space, and what share of its pages stands in long runs."""
    for name, each in found.items():
        yield f"runs of pages that follow each other, {name}"
        yield f"{'pages of 4 KB':>15}{'runs':>12}{'pages':>14}  share"
        for low, high, runs, pages in each.bins():
            length = f"{low:,}" if low == high else f"{low:,}..{high:,}"
            part = pages / each.pages
            yield f"{length:>15}{runs:>12,}{pages:>14,}  {part:5.1%}  {'#' * round(40 * part)}".rstrip()
        shares = ", ".join(f">= {least}: {each.share(least):.1%}" for least in SHARES)
        yield f"{each.pages:,} pages of 4 KB in {int(each.runs.sum()):,} runs; share of pages in runs {shares}"
