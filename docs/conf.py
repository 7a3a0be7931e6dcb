"""Sphinx configuration. `make docs` builds strictly: a warning is an error."""

import sys
import warnings
from pathlib import Path

import torch

import weft

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
torch.set_num_threads(1)  # the tutorials' networks are small; more threads only get in each other's way

project = "Weft"
author = "The Weft authors"
copyright = "The Weft authors, Apache-2.0"  # noqa: A001  Sphinx's name
version = release = weft.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "weft_docs",
]
exclude_patterns = ["_build", "_templates", "_ext"]
templates_path = ["_templates"]

# A reference that leads nowhere is an error, except to the documentation of other projects: fetching their indexes
# would make the build depend on the network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|nn|lightning|matplotlib|kornia|pytest)\..*"),
    (r"py:.*", r"(collections|typing|abc|dataclasses|types|pathlib)\..*"),
    (r"py:.*", r"(Tensor|Axes|Any|Callable|Iterable|Iterator|Mapping|Sequence|Path|Self|Literal|optional|default)"),
    (r"py:.*", r"weft\.data\.batches\.Batches"),  # what loaders return; used by iterating over it
    (r"py:.*", r"(bool|dict|float|int|list|object|str|tuple|type|None|ValueError|RuntimeError|AttributeError)"),
]

# ------------------------------------------------------------------------------------------------ pages

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "Weft"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["weft.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#7a3e1d", "color-brand-content": "#7a3e1d"},
    "dark_css_variables": {"color-brand-primary": "#e0a37e", "color-brand-content": "#e0a37e"},
}

# -------------------------------------------------------------------------------------------- docstrings

autosummary_generate = True
autodoc_inherit_docstrings = False  # torch's own docstrings refer to torch's own pages
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "torch_class"}
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# The sections of our docstrings beyond Google's own.
napoleon_custom_sections = ["Shape", "Parameters stored", "Initial law", "Cost", "Source"]

# --------------------------------------------------------------------------------------------- tutorials

sphinx_gallery_conf = {
    "examples_dirs": "../tutorials",
    "gallery_dirs": "tutorials",
    "filename_pattern": r"\.py$",
    "abort_on_example_error": True,
    "matplotlib_animations": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
}
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")  # the pictures go to files
