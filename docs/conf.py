"""How Sphinx builds this site: `make docs`. Every notebook runs anew, without a network; every warning is an error."""

import os
import sys
from pathlib import Path

from pccompile import __version__

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "site" / "extensions"))

# Kernels, and what they start, refuse connections to other machines: sitecustomize.py there.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(HERE / "site" / "offline"), str(HERE.parent), os.environ.get("PYTHONPATH", "")))
)
os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

project, author, copyright = "pccompile", "The pccompile authors", "The pccompile authors, Apache-2.0"
version = release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "docstrings", "site_checks"]
exclude_patterns = ["site", "_build", "**.ipynb_checkpoints"]
html_theme, html_title = "furo", f"pccompile {__version__}"
templates_path: list[str] = []

myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_execution_in_temp = True
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # what cells print as Markdown has tables
smartquotes = False  # --verify is no dash

nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!pccompile).*")]  # types of other packages: their pages are not ours to check
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
pygments_style, pygments_dark_style = "friendly", "monokai"
