"""The promise: any Keras classifier can be wrapped. On published ones.

A spread of them, one of each kind; with DD_KERAS_TEST_ALL=1 all. The command
`python benchmarks/classifiers.py` goes through all too, and writes the table.
"""

import json
import sys

import keras
import numpy as np
import pytest
from absl.testing import flagsaver
from conftest import THOROUGH, program
from published import CLASSIFIERS, Published
from published.check import STAGES, check

# The quickest of each kind that tests/test_any_classifier.py does not have, and
# what is special about it.
SPREAD = (
    "tf_titanic",  # sequential, Normalization inside, one logit
    "mixed_precision",  # bfloat16
    "supervised_contrastive",  # nested, frozen layers
    "sngp",  # own layer, spectral normalization, told what it ends in
    "tf_audio",  # Resizing inside
    "deep_ensemble",  # a mean of softmaxes
    "ct_scan",  # volumes
    "fnet",  # own layers, complex numbers inside
    "text_transformer",  # attention
    "pointnet",  # activity regularizer
    "row_gru",  # recurrent
)
NAMES = CLASSIFIERS if THOROUGH else SPREAD


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the classifiers' files go; all are loaded at the end."""
    return tmp_path_factory.mktemp("published")


def loaded(kind, folder):
    """What went wrong with the classifiers, loaded in one new process."""
    done = program("benchmarks/loading.py", kind, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_a_published_classifier_is_defended(name, folder):
    row = {}
    keras.backend.clear_session()
    check(name, folder, row)
    assert row["worked"] == list(STAGES)


@pytest.mark.thorough
def test_what_was_saved_gives_the_same_in_a_new_process(folder):
    found = loaded("keras", folder)
    assert set(found) == {path.stem for path in folder.glob("*.npz")}
    assert not {name: error for name, error in found.items() if error}


@pytest.mark.thorough
def test_what_was_exported_gives_the_same_without_keras(folder):
    found = loaded("savedmodel", folder)
    assert found
    assert not {name: error for name, error in found.items() if error}


# What is asked of them


@pytest.fixture
def table():
    """The benchmark, whose flags are undefined again afterwards."""
    with flagsaver.flagsaver():
        import classifiers

        yield classifiers
        sys.modules.pop("classifiers")


def published(build):
    """A classifier of vectors, of three classes."""
    return Published(build, "here", "sequential", (4,), -1.0, 1.0, None)


def affine():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def test_the_table_shows_what_fails(table, tmp_path, monkeypatch):
    def broken():
        raise ValueError("no such classifier\nat all")

    monkeypatch.setitem(CLASSIFIERS, "broken", published(broken))
    row = table.measure("broken", tmp_path)
    assert row["error"] == "ValueError: no such classifier"
    assert row["worked"] == []
    assert not table.passed(row)


@pytest.mark.thorough
def test_other_outputs_are_seen_in_both_processes(table, tmp_path, monkeypatch):
    monkeypatch.setitem(CLASSIFIERS, "affine", published(affine))
    row = table.measure("affine", tmp_path)
    assert row["error"] is None
    assert row["ratio"] == row["step_s"] / row["clean_step_s"]
    rows = {"affine": row}
    table.add_loaded(rows, tmp_path)
    assert table.passed(row)

    expected = dict(np.load(tmp_path / "affine.npz"))
    for key in ("outputs", "probabilities"):
        np.savez(
            tmp_path / "affine.npz", **{**expected, key: expected[key] + 0.01}
        )
        kind = {"outputs": "keras", "probabilities": "savedmodel"}[key]
        assert "AssertionError" in loaded(kind, tmp_path)["affine"]


def test_a_gradient_that_is_missing_is_seen(tmp_path, monkeypatch):
    import harness

    def without_the_last(self, grads, trainable_variables=None):
        grads = [*grads[:-1], grads[-1] * 0.0]
        return apply(self, grads, trainable_variables)

    apply = harness.RecordingSGD.apply
    monkeypatch.setitem(CLASSIFIERS, "affine", published(affine))
    monkeypatch.setattr(harness.RecordingSGD, "apply", without_the_last)
    with pytest.raises(AssertionError, match="gradient is zero for"):
        check("affine", tmp_path, {})


def test_a_server_has_no_keras():
    done = program(
        "-c",
        "import sys; sys.path.insert(0, 'benchmarks'); import loading; "
        "loading.block(); import tensorflow; import keras",
    )
    assert "ModuleNotFoundError" in done.stderr
    assert "keras" in done.stderr.splitlines()[-1]
