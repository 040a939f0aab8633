"""`python -m fastmmu`, and the command `fastmmu`: the command line as a program."""

from __future__ import annotations

from fastmmu.cli.interruption import take

__all__ = ["main"]


def main() -> int:
    """Run the command line of the process; returns its exit code. No signal makes a traceback from here on."""
    take()  # before anything else is imported
    from fastmmu.cli.main import program

    return program()


if __name__ == "__main__":
    raise SystemExit(main())
