"""Address spaces as objects: reads with holes, who maps a page, what changed, where roots may lie.

space    reads, the reverse map, the comparison of two enumerations
roots    which pages may be root tables
"""

from __future__ import annotations
