"""Sphinx's configuration. `sphinx-build -W --keep-going -n docs docs/_build/html` builds the site, without a network."""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

import fulmen  # noqa: E402

release = fulmen.__version__
project = "Fulmen"
author = copyright = "the authors of Fulmen"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "fulmen_docs"]
exclude_patterns = ["_build", "_extensions"]
nitpicky = True

# Markdown and notebooks. The notebooks are shown as they were committed: a test runs them.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", dirs_exist_ok=True)

# Docstrings.
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
add_module_names = True
python_maximum_signature_line_length = 100
toc_object_entries = False

html_theme = "sphinx_book_theme"
html_title = "Fulmen"
html_static_path = ["_static"]
html_css_files = ["fulmen.css"]
html_copy_source = False
html_theme_options = {
    "navbar_persistent": [],  # the search field is in the sidebar
    "show_navbar_depth": 1,
    "home_page_in_toc": False,
    "use_download_button": False,
}
