"""What the files of traces mean (files.md), whole files at once.

lackey       Valgrind's text
text         text by a description of its columns
drmemtrace   DynamoRIO's records
gem5         gem5's packets
touches      of a stretch of a trace what touches a page in a new way
"""

from __future__ import annotations
