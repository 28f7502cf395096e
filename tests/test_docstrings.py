"""Every example in a docstring of dd_keras runs."""

import ast
import pathlib
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

import dd_keras

MARK = "Example:\n"


def examples():
    """All examples below dd_keras/: dict of "file::name" to code."""
    found = {}
    for path in sorted((ROOT / "dd_keras").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(
                node,
                (ast.Module, ast.ClassDef, ast.FunctionDef),
            ):
                continue
            text = ast.get_docstring(node) or ""
            if "Example" in text:
                name = getattr(node, "name", "module")
                place = path.relative_to(ROOT).as_posix()
                found[f"{place}::{name}"] = code(text)
    return found


def code(docstring):
    """The code of the example in a docstring, up to the next section."""
    assert docstring.count(MARK) == 1, docstring
    after = docstring.partition(MARK)[2].splitlines()
    block = []
    for line in after:
        if line and not line.startswith(" "):
            break
        block.append(line)
    return textwrap.dedent("\n".join(block))


EXAMPLES = examples()


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What an example may take for granted: a classifier, and data for it."""
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    classifier = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, "relu"),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    x = np.random.default_rng(0).uniform(size=(12, 4)).astype("float32")
    y = np.arange(12) % 3
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(6)
    classifier.save("classifier.keras")
    return {
        "dd_keras": dd_keras,
        "keras": keras,
        "classifier": classifier,
        "x_train": x,
        "y_train": y,
        "x_test": x,
        "y_test": y,
        "train": batches,
        "test": batches,
    }


def test_examples_are_found():
    assert "dd_keras/defenses/deep_defense.py::DeepDefenseModel" in EXAMPLES
    assert all(text.strip() for text in EXAMPLES.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, names):
    exec(compile(EXAMPLES[name], name, "exec"), names)


def test_an_example_ends_with_the_docstring_or_its_next_section():
    text = "What.\n\nExample:\n    a = 1\n\n    b = 2\n\nRaises:\n    no"
    assert code(text).split() == ["a", "=", "1", "b", "=", "2"]


def test_examples_leave_nothing_behind(names):
    code = EXAMPLES["dd_keras/utils/files.py::atomic_write"]
    exec(compile(code, "whole", "exec"), names)
    assert pathlib.Path("results.json").is_file()
    assert not list(pathlib.Path().glob("*.part*"))
