"""Address spaces as objects: reads with holes, who maps a page, what changed.

space    reads, the reverse map, the comparison of two enumerations
"""

from __future__ import annotations
