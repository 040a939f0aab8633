"""How Sphinx builds the documentation: `make docs`. Nothing is fetched."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

import fastmmu

project = "fastmmu"
author = "The fastmmu authors"
project_copyright = author
version = release = fastmmu.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx", "sphinx_argparse_cli", "kernels"]
exclude_patterns: list[str] = []
suppress_warnings = ["ref.python"]  # names that two classes have, in types
nitpicky = False
default_role = "literal"  # `name` in docstrings

# ---- pages -------------------------------------------------------------------------------------------------------

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
highlight_language = "none"
pygments_style = "friendly"
pygments_dark_style = "github-dark"
intersphinx_mapping: dict[str, tuple[str, str | None]] = {}  # names of other packages stay names: no network

# ---- names and their docstrings ----------------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 100

# ---- how it looks ------------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"fastmmu {release}"
html_static_path = ["static"]
html_css_files = ["fastmmu.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5cad", "color-brand-content": "#0b5cad"},
    "dark_css_variables": {"color-brand-primary": "#79b8ff", "color-brand-content": "#79b8ff"},
}
