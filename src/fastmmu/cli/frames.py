"""`--frames`: which frames of guest memory the guest kernel gives to programs."""

from __future__ import annotations

from typing import Any

__all__ = ["add_frames"]


def add_frames(group: Any) -> None:
    """--frames, --host-frames, --frames-of."""
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
        "--frames-of",
        metavar="FILE",
        dest="frames",
        type=lambda path: f"of:{path}",
        help="as the pages of a recorded guest lay: a file of fastmmu maps GUEST --csv FILE",
    )
