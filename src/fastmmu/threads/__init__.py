"""Threads: the lock of what several of them may use at once, how long calls let others in, and who makes threads
(docs/threads.md).

    turns   `Turns`, a fair and recursive lock that a long call gives up between the chunks of its work; `Turn`; `Pace`
    lanes   `in_lanes`: several pieces of work over one pass of a source, in several threads; `blocks`: the memory of
            what waits for them

Imports nothing but the vocabulary.

To add a class whose calls run without the GIL: a `Turns` as its member; `take`, `alone` or `apart` in the first line
of each method, `begin`, `between` and `end` in those that take long; its rule after "Threads:" in its docstring, and in
the table of docs/threads.md.
"""

from __future__ import annotations
