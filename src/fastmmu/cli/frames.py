"""`--frames`: which frames of guest memory the guest kernel gives to programs; `--thp`: which are huge."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_frames"]


class _FramesOf(argparse.Action):
    """It stands for --frames of:FILE, and has no value of its own."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.frames = f"of:{values}"


def add_frames(group: Any) -> None:
    """--frames, --host-frames, --host-thp, --frames-of, --thp, --defrag, --unmovable."""
    group.add_argument(
        "--frames",
        metavar="POLICY",
        help="which frames programs get: first-touch (the default), shuffled[:SEED], buddy:F[:SEED] (memory fragmented "
        "to FMFI F), reserve:SIZE, contiguous; the last two also with +buddy:F, as in reserve:64k+buddy:0.5; of:FILE",
    )
    group.add_argument(
        "--host-frames",
        metavar="POLICY",
        help="where the host's pages lie, which data caches see: linear (the default), shuffled[:SEED], buddy:F[:SEED]",
    )
    group.add_argument(
        "--host-thp",
        choices=("always", "never"),
        help="huge pages of the host: the 2 MB that --host-frames leaves whole, which the VMM maps as one page; none",
    )
    group.add_argument(
        "--frames-of",
        metavar="FILE",
        action=_FramesOf,
        help="as the pages of a recorded guest lay: a file of fastmmu maps GUEST --csv FILE",
    )
    group.add_argument(
        "--thp",
        metavar="POLICY",
        help="with --pages thp: always, madvise, never, always+khugepaged:PAGES/ACCESSES[:NONE], which looks at PAGES "
        "after each so many accesses, and makes one of 512 of which NONE (511) need not be there",
    )
    group.add_argument(
        "--defrag",
        choices=("never", "madvise", "defer", "always"),
        help="who waits for a compaction where no 2 MB are free (never); with --thp, --frames buddy:F and the like",
    )
    group.add_argument(
        "--unmovable",
        type=float,
        metavar="SHARE",
        help="share of the fragmented blocks whose pages in use cannot move (1)",
    )
