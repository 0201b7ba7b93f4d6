"""How Sphinx builds these pages: ``python -m sphinx -W -n docs build/docs``, without a network."""

from __future__ import annotations

import re
import typing
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import anndata  # noqa: F401  # before the flag below is set: it is for our modules only
import distributed  # noqa: F401  # the same
import zarr  # noqa: F401  # the same

from dask_convert import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# Load what is documented together with what only annotations need, so that these can be resolved.
typing.TYPE_CHECKING = True
for _module in ("dask_convert.api", "dask_convert.reading.store"):
    import_module(_module)
typing.TYPE_CHECKING = False

project = "dask_convert"
author = "the dask_convert developers"
project_copyright = "2026, the dask_convert developers"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"dask_convert {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sphinx = False

myst_heading_anchors = 3  # links may name any section

default_role = "autolink"  # `convert` in a docstring is a link, where there is such a name
autosummary_generate = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
add_module_names = False
python_use_unqualified_type_names = True

# What has no page here: types of other libraries, whose indexes cannot be looked at without a
# network, and what is described where it is used.
nitpick_ignore_regex = [
    ("py:.*", r"(anndata|collections|distributed|numpy|os|pandas|pathlib|zarr)\..*"),
    ("py:.*", r"dask_convert\.(conversion|display|engine|places|planning|shuffle)\..*"),
    # As signatures of options have them; what each means stands beside it.
    ("py:class", "Client|ClusterKind|Codec|OnPart|Pathish|ProfileName|Progress|SlurmSettings"),
    ("py:obj", "dask_convert"),
    ("py:obj", r"Store\.(by|read)"),  # of Store's other half, in the module that both are from
]

# Pages in the order of the side bar; those that are not named here come last.
_ORDER = (
    *("install", "running", "command-line", "exit-codes", "formats", "profiles", "reading-genes"),
    *("jupyter", "faq", "faults", "verification", "comparison", "api", "architecture"),
    *("benchmarks", "changelog"),
)

# Where pages of the repository are, on this site.
_PAGES = {"../benchmarks/README.md": "benchmarks.md", "../CHANGELOG.md": "changelog.md"}


def _link_pages(_app: Sphinx, _name: str, source: list[str]) -> None:
    """Let links to files that are pages here lead to these."""
    for file, page in _PAGES.items():
        source[0] = source[0].replace(f"]({file}", f"]({page}")


def _list_pages(app: Sphinx, name: str, source: list[str]) -> None:
    """Put the names of all pages where the front page says PAGES."""
    if name == "index":
        pages = {path.stem for path in Path(app.srcdir).glob("*.md")} - {"index"}
        listed = [page for page in _ORDER if page in pages] + sorted(pages - {*_ORDER})
        source[0] = source[0].replace("PAGES", "\n".join(listed))


def _returned_prose(
    _app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Give "Returns" without a type, which the annotation has, to Sphinx as a field of prose."""
    section = re.compile(r"^Returns\n-+\n((?:.+(?:\n|$))+)", re.MULTILINE)
    text = section.sub(
        lambda found: f"\n\n:returns: {' '.join(found[1].split())}\n\n\n", "\n".join(lines)
    )
    lines[:] = text.split("\n")


def setup(app: Sphinx) -> None:
    """Register them."""
    app.connect("source-read", _link_pages)
    app.connect("source-read", _list_pages)
    app.connect("autodoc-process-docstring", _returned_prose, priority=100)  # before napoleon's
