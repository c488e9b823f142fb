"""Sphinx configuration of the documentation site. `make docs` builds it into build/docs, offline."""

import shutil
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for `from_code`
sys.path.insert(0, str(HERE.parent))

project = "hf_compress"
author = "The hf_compress authors"
copyright = "2026, " + author
release = version = installed_version("hf-compress")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "from_code"]
exclude_patterns = ["study/*"]  # written by `make study-report`, and copied below

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "code"  # our docstrings write `name`, as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "hf_compress"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_show_sphinx = False
html_copy_source = False


def copy_study(app: Sphinx, error: Exception | None) -> None:
    """Copy tables and the offline page of the study beside the site, so that `study/index.html` opens."""
    if error is None and app.builder.format == "html":
        shutil.copytree(HERE / "study", Path(app.outdir) / "study", dirs_exist_ok=True)


def setup(app: Sphinx) -> None:
    """Register what the configuration adds to the build."""
    app.connect("build-finished", copy_study)
