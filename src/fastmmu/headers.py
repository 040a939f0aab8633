"""Where the headers of the kernels lie, for packages that cimport them."""

from __future__ import annotations

import os

__all__ = ["get_include"]


def get_include() -> str:
    """The directory to put on Cython's include path: it holds the package `fastmmu` with its `.pxd` files.

    In a setup.py: ``cythonize(extensions, include_path=[fastmmu.get_include()])``. The C compiler needs nothing. What
    may be cimported, and stays, is listed in `fastmmu/__init__.pxd`; examples/cython is a package that does.
    """
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
