from __future__ import annotations

from Cython.Build import cythonize
from setuptools import Extension, setup

import fastmmu

setup(
    ext_modules=cythonize(
        [Extension("pagesizes", ["pagesizes.pyx"]), Extension("last_pages", ["last_pages.pyx"])],
        include_path=[fastmmu.get_include()],
    ),
    py_modules=[],
)
