"""Every public symbol has an example in its docstring, and all of them run.

The examples are doctests. What they begin with, a trained classifier and data
for it, is the code of docs/reference/index.md; each runs in an empty folder.
"""

import ast
import doctest
import importlib
import inspect
import pathlib
import re
import textwrap
import types
from typing import NamedTuple

import keras
import numpy as np
import pytest
from conftest import ROOT

import dd_keras

MARK = "Example:\n"
PROMPT = ">>> "
PACKAGES = (
    "dd_keras",
    "dd_keras.attacks",
    "dd_keras.datasets",
    "dd_keras.defenses",
    "dd_keras.distribution",
    "dd_keras.evaluation",
    "dd_keras.evaluation.metrics",
    "dd_keras.networks",
    "dd_keras.networks.applications",
    "dd_keras.plots",
    "dd_keras.serving",
    "dd_keras.training",
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Docstring(NamedTuple):
    """A docstring, and the number of its first line in the file."""

    text: str
    line: int


def docstrings():
    """All docstrings below dd_keras/: dict of "file::name" to `Docstring`."""
    found = {}
    for path in sorted((ROOT / "dd_keras").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        place = path.relative_to(ROOT).as_posix()
        found |= _docstrings_in(tree, f"{place}::")
    return found


def _docstrings_in(node, place):
    found = {}
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef)):
            name = f"{place}{child.name}"
            text = ast.get_docstring(child)
            if text:
                found[name] = Docstring(text, child.body[0].lineno)
            found |= _docstrings_in(child, f"{name}.")
    return found


def example(docstring):
    """The example in a docstring, up to the next section: a `Docstring`."""
    before, _, after = docstring.text.partition(MARK)
    block = []
    for line in after.splitlines():
        if line and not line.startswith(" "):
            break
        block.append(line)
    line = docstring.line + before.count("\n") + 1
    return Docstring(textwrap.dedent("\n".join(block)), line)


def public_symbols():
    """The public classes and functions: dict of name to object."""
    found = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", None) or _defined_in(module):
            value = getattr(module, name)
            if isinstance(value, (type, types.FunctionType)):
                found.setdefault(value, f"{package}.{name}")
    return {name: value for value, name in found.items()}


def _defined_in(module):
    """The public names of a module that has no `__all__`."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    ]


def fault(text):
    """What is wrong with the example of a docstring; empty: nothing."""
    if text is None:
        return "it has no docstring of its own"
    sections = len(re.findall(r"^ *Example:$", text, re.M))
    if sections != 1:
        return f"it has {sections} sections `Example:`, and not one"
    block = example(Docstring(inspect.cleandoc(text), 1)).text
    if not block.strip().startswith(PROMPT):
        return f"its example does not begin with {PROMPT!r}"
    return ""


DOCSTRINGS = docstrings()
EXAMPLES = {
    name: example(docstring)
    for name, docstring in DOCSTRINGS.items()
    if MARK in docstring.text
}
PUBLIC = public_symbols()


def test_public_symbols_are_found():
    assert "dd_keras.DeepDefenseModel" in PUBLIC
    assert "dd_keras.distribution.is_chief" in PUBLIC
    assert "dd_keras.networks.applications.build" in PUBLIC
    modules = {
        name
        for name in dd_keras.__all__
        if isinstance(getattr(dd_keras, name), types.ModuleType)
    }
    assert {f"dd_keras.{name}" for name in modules} <= set(PACKAGES)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_symbol_has_one_example(name):
    # Not `inspect.getdoc`: it falls back to the docstring of a base class.
    found = fault(PUBLIC[name].__doc__)
    assert not found, f"{name}: {found}."


@pytest.mark.parametrize(
    "name", [n for n, value in PUBLIC.items() if isinstance(value, type)]
)
def test_the_methods_of_a_public_class_have_docstrings(name):
    kinds = (property, classmethod, staticmethod, types.FunctionType)
    lacking = [
        method
        for method, value in vars(PUBLIC[name]).items()
        if not method.startswith("_")
        and isinstance(value, kinds)
        and not value.__doc__
    ]
    assert not lacking


def test_a_docstring_is_found_at_fault():
    right = "What.\n\n    Example:\n        >>> 1\n        1\n    "
    assert fault(right) == ""
    assert fault(None) == "it has no docstring of its own"
    assert "has 0 sections" in fault("What.")
    assert "has 2 sections" in fault(right + right)
    assert "does not begin" in fault(right.replace(">>> ", ""))


def test_every_prompt_is_in_an_example():
    for name, docstring in DOCSTRINGS.items():
        shown = EXAMPLES[name].text if name in EXAMPLES else ""
        assert docstring.text.count(PROMPT) == shown.count(PROMPT), name


@pytest.fixture(scope="module")
def beginning():
    """What the examples begin with, by the code on the reference's page."""
    page = (ROOT / "docs/reference/index.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    names = {}
    exec(compile(code, "docs/reference/index.md", "exec"), names)
    return names


@pytest.fixture
def names(beginning, tmp_path, monkeypatch):
    """The same names; a classifier that an example may train is its own."""
    monkeypatch.chdir(tmp_path)
    trained = beginning["classifier"]
    classifier = keras.models.clone_model(trained)
    classifier.set_weights(trained.get_weights())
    classifier.compile_from_config(trained.get_compile_config())
    keras.utils.set_random_seed(0)
    return {**beginning, "classifier": classifier}


def failures(name, code, names):
    """What doctest says of an example that fails; empty where it does not."""
    path, _, symbol = name.partition("::")
    test = doctest.DocTestParser().get_doctest(
        code.text, names, symbol, path, code.line - 1
    )
    assert test.examples, f"{name}: no examples"
    said = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    return "".join(said)


@pytest.mark.thorough
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, names):
    said = failures(name, EXAMPLES[name], names)
    if said:
        pytest.fail(f"The example of {name} fails.\n{said}", pytrace=False)


def test_an_example_with_another_output_fails(names):
    code = Docstring(">>> np.shape(x_test)\n(100, 8, 8, 2)\n", 7)
    said = failures("dd_keras/a.py::f", code, names)
    assert 'File "dd_keras/a.py", line 7, in f' in said
    assert "(100, 8, 8, 1)" in said


def test_the_classifier_of_the_examples_has_learned(beginning):
    _, accuracy = beginning["classifier"].evaluate(
        beginning["x_test"], beginning["y_test"], verbose=0
    )
    assert accuracy >= 0.9
    assert 0 <= np.min(beginning["x_train"]) < np.max(beginning["x_train"]) <= 1


def test_an_example_ends_with_the_docstring_or_its_next_section():
    text = "What.\n\nExample:\n    >>> a\n\n    >>> b\n\nRaises:\n    no"
    found = example(Docstring(text, 10))
    assert found.text.split() == [">>>", "a", ">>>", "b"]
    assert found.line == 13


def test_examples_leave_nothing_behind(names):
    name = "dd_keras/utils/files.py::atomic_write"
    assert not failures(name, EXAMPLES[name], names)
    assert pathlib.Path("results.json").is_file()
    assert not list(pathlib.Path().glob("*.part*"))
