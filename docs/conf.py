"""Configuration of the documentation site: `make docs` builds it into site/html, warnings are errors."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]

from facebones import __version__  # noqa: E402 (of this checkout)

project = "facebones"
author = "The facebones authors"
project_copyright = author
release = __version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "reference"]
exclude_patterns = ["_ext", "**/.ipynb_checkpoints"]
templates_path: list[str] = []

# Markdown. The pages are read on GitHub too, so headings have GitHub's anchors.
myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # tests/docs executes the notebooks; the site shows their saved output
smartquotes = False  # --option stays as it is
highlight_language = "none"  # blocks without a language are commands

# The API, from docstrings in Google's style; a single backtick is code.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_rtype = False
napoleon_preprocess_types = False
default_role = "code"
add_module_names = False

html_theme = "furo"
html_title = f"facebones {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "source_repository": "https://github.com/facebones/facebones/",
    "source_branch": "main",
    "source_directory": "docs/",
    "light_css_variables": {"color-brand-primary": "#005f96", "color-brand-content": "#005f96"},
    "dark_css_variables": {"color-brand-primary": "#7cc0f0", "color-brand-content": "#7cc0f0"},
}
pygments_style = "default"
copybutton_exclude = ".linenos, .gp, .go"
