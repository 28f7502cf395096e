"""The documentation: its links, its reference, and how docstrings are read."""

import importlib
import pathlib
import re
import sys

import pytest
from conftest import ROOT

import dd_keras

DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *(p for p in DOCS.rglob("*.md") if "_build" not in p.parts),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    ]
)
LINK = re.compile(r"\]\(([^)\s]+)\)|image\} (\S+)|include\} (\S+)")
PACKAGES = (
    "attacks", "datasets", "defenses", "evaluation", "networks", "plots",
    "serving", "training",
)  # fmt: skip


def links(page):
    """What a page links to, but for other sites and its own headings."""
    for groups in LINK.findall(page.read_text("utf-8")):
        target = "".join(groups).partition("#")[0]
        if target and not re.match(r"\w+:", target):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in links(page):
        assert (page.parent / target).exists(), target


def test_all_pages_are_in_the_contents():
    contents = ""
    for page in DOCS.rglob("index.md"):
        contents += page.read_text("utf-8")
    for page in PAGES:
        if DOCS in page.parents and page.name != "index.md":
            name = page.relative_to(DOCS).with_suffix("").as_posix()
            listed = {name, page.stem} & set(
                re.findall(r"^\S+$", contents, re.M)
            )
            assert listed, name


def test_readme_is_a_page_and_its_script_that_of_the_quickstart():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(readme.splitlines()) <= 120
    (script,) = re.findall(r"^```python\n.*?^```$", readme, re.M | re.S)
    assert script in (DOCS / "quickstart.md").read_text("utf-8")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_has_every_public_name(package):
    """Sphinx takes what is in `__all__`; all of it has a docstring."""
    page = (DOCS / "reference" / f"{package}.md").read_text("utf-8")
    assert f".. automodule:: dd_keras.{package}\n" in page
    module = importlib.import_module(f"dd_keras.{package}")
    for name in module.__all__:
        if callable(getattr(module, name)):
            assert getattr(module, name).__doc__, name


def test_public_packages_all_have_a_page():
    modules = {
        name
        for name in dd_keras.__all__
        if type(getattr(dd_keras, name)) is type(dd_keras)
    }
    assert modules - {"distribution"} <= set(PACKAGES)


@pytest.fixture
def docstrings(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    yield importlib.import_module("docstrings")
    sys.modules.pop("docstrings", None)


def test_docstrings_are_read_as_they_look(docstrings):
    lines = [
        "The norm ||x||_p of `a | b` and l_ *so*.",
        "",
        "    exp(-c * rho)   if correct,",
        "",
        "    exp( d * rho)   otherwise.",
        "",
        "And on.",
        "",
        "Args:",
        "    x: a |number|.",
        "    *more: others.",
        "",
        "        y = 1",
        "",
        "Example:",
        "    >>> f(x)",
        "    1",
        "",
        "    >>> g(*x)",
        "Raises:",
        "    ValueError: if |x| is zero.",
    ]
    docstrings.to_rst(None, None, None, None, None, lines)
    assert lines == [
        r"The norm \|\|x\|\|_p of `a | b` and l\_ \*so\*.",
        "",
        "::",
        "",
        "    exp(-c * rho)   if correct,",
        "",
        "    exp( d * rho)   otherwise.",
        "",
        "And on.",
        "",
        "Args:",
        r"    x: a \|number\|.",
        "    *more: others.",
        "",
        "        y = 1",
        "",
        "Example:",
        "",
        ".. code-block:: pycon",
        "",
        "    >>> f(x)",
        "    1",
        "",
        "    >>> g(*x)",
        "Raises:",
        r"    ValueError: if \|x\| is zero.",
    ]


def test_signatures_are_those_of_the_constructors(docstrings):
    def of(cls):
        return docstrings.signature(None, "class", "", cls, None, "", "")

    arguments, _ = of(dd_keras.TRADESModel)
    assert arguments == "(model, *, adversary, beta=6.0, **kwargs)"
    assert of(dd_keras.CombinedModel) is None  # it has none of its own


def test_guides_are_notebooks_that_say_what_to_try_next():
    guides = sorted(pathlib.Path(DOCS / "guides").glob("*.py"))
    assert guides
    for guide in guides:
        text = guide.read_text("utf-8")
        assert text.startswith("# ---\n# jupyter:")
        assert "# %% [markdown]\n# # " in text
        assert "# ## What to try next" in text
        assert f"guides/{guide.stem}" in (DOCS / "index.md").read_text("utf-8")
