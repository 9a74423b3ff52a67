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
    "page_width": "1200px",
    "font_size": "15px",
    "code_font_size": "0.85em",
}
html_show_sourcelink = False
myst_heading_anchors = 3
default_role = "code"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 120
toc_object_entries = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_google_docstring = False
napoleon_use_rtype = False
highlight_language = "text"
