"""How fast the package is: a pytest-benchmark suite, and what it is set beside.

Each bench checks what it computes, and takes turns with its rivals: theirs, ours, theirs, ours, ... So the ratio of a
round is of neighbours, and holds on a machine whose speed changes. `race.py` measures; a rival is the yardstick
(`yardstick.py`, tuned C that FASTMMU_YARDSTICK names), a peer (another package), or another way of our own.

To add a bench: a function in `test_<work>.py` of the group of that work, which calls `race` with what it does, the
number of items, and its rivals; and asserts what it got. Sizes come from `scale`, data from a seed.
"""
