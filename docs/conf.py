"""The documentation site: Markdown beside this file, and docstrings."""

from importlib import metadata

project = "unicoord-atlas"
author = copyright = "unicoord-atlas developers"
release = metadata.version("unicoord-atlas")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "alabaster"
html_theme_options = {
    "description": "A coordinate system of cells, learned from whole single-cell atlases",
    "fixed_sidebar": True,
    "page_width": "1100px",
}
html_show_sourcelink = False
myst_heading_anchors = 3
default_role = "code"
autodoc_typehints = "none"  # signatures carry them
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = False
napoleon_use_rtype = False
highlight_language = "text"
