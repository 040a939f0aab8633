"""`python -m fastmmu`: the command line."""

from __future__ import annotations

from fastmmu.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
