"""The documentation's settings: `make docs` builds it, warnings are errors."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import docstrings  # noqa: E402

project = "dd_keras"
author = "the dd_keras authors"
release = re.search(
    r'__version__ = "(.+)"', (ROOT / "dd_keras/version.py").read_text("utf-8")
)[1]

extensions = [
    "mathml",
    "myst_nb",
    "notebooks",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
html_math_renderer = "mathml"
exclude_patterns = [
    "_build",
    "jupyter_execute",
    "conf.py",
    "docstrings.py",
    "mathml.py",
    "notebooks.py",
]
default_role = "code"  # in docstrings, what stands in single backticks
highlight_language = "none"  # of code that does not say what it is

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# Pages that are also read in the repository link to its files and folders.
suppress_warnings = ["myst.xref_missing"]

nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_merge_streams = True

autodoc_member_order = "groupwise"
autodoc_typehints = "none"  # docstrings give shapes, ranges and units
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"dd_keras {release}"
html_show_copyright = False


def setup(app):
    """Has docstrings read as plain text, which they are written as."""
    app.connect("autodoc-process-docstring", docstrings.to_rst, priority=100)
    app.connect("autodoc-process-signature", docstrings.signature)
