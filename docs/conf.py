"""Sphinx configuration of the documentation site: `make docs` builds it without a network."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_extensions"), str(HERE.parent)]

from geoloc import __version__  # noqa: E402 (the package lies in the folder that was just added)

project = "geoloc"
author = "the geoloc contributors"
copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "plain_docstrings",
]
exclude_patterns = ["site", "_templates", "_extensions"]
templates_path = ["_templates"]

# Guides: Markdown that GitHub shows as well. `[text](page.md#heading)` needs anchors for headings.
myst_heading_anchors = 3

# API reference: one page for each module, written from the package tree.
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature of a dataclass shows its types
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True

# A name that is imported for type checking only is written without its module. Two modules define `PointTable`, so
# Sphinx warns that such a link has two targets.
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_title = f"geoloc {release}"
html_show_copyright = False
html_copy_source = False
