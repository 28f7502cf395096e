"""The promise: any Keras classifier can be wrapped. On published ones."""

import json

import keras
import pytest
from conftest import shell
from published import CLASSIFIERS
from published.check import STAGES, check


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the classifiers' files go; all are loaded at the end."""
    return tmp_path_factory.mktemp("published")


def loaded(kind, folder):
    """What went wrong with the classifiers, loaded in one new process."""
    done = shell("benchmarks/loading.py", kind, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_published_classifier_is_defended(name, folder):
    row = {}
    check(name, folder, row)
    assert row["worked"] == list(STAGES)
    keras.backend.clear_session()


def test_what_was_saved_gives_the_same_in_a_new_process(folder):
    found = loaded("keras", folder)
    assert set(found) == {path.stem for path in folder.glob("*.npz")}
    assert not {name: error for name, error in found.items() if error}


def test_what_was_exported_gives_the_same_without_keras(folder):
    found = loaded("savedmodel", folder)
    assert found
    assert not {name: error for name, error in found.items() if error}
