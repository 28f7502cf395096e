"""The metadata of the package, and the lists that `make` relies on."""

import pathlib
import re
import sys

import pytest
from conftest import CORE, NOT_CORE, ROOT

import dd_keras
from dd_keras import datasets

LOWEST = ROOT / ".ci/lowest.txt"


def test_every_test_file_is_of_the_core_or_not():
    found = {
        path.stem.removeprefix("test_")
        for path in pathlib.Path(ROOT, "tests").glob("test_*.py")
    }
    assert not CORE & NOT_CORE
    assert found == CORE | NOT_CORE


def bounds():
    """Name to lowest version of what setup.py asks for, with its extras."""
    text = pathlib.Path(ROOT, "setup.py").read_text()
    found = dict(re.findall(r'"([\w-]+)(?:\[[\w-]+\])?>=([\d.]+)"', text))
    assert len(found) > 15
    return found


def test_lowest_environment_has_the_bounds_of_setup():
    lines = LOWEST.read_text().splitlines()
    lowest = dict(line.split("==") for line in lines if line[0] != "#")
    asked = bounds()
    for name, version in lowest.items():
        assert version.removesuffix(".*") == asked[name], name


def test_lowest_environment_pins_what_the_library_needs():
    pinned = LOWEST.read_text()
    text = pathlib.Path(ROOT, "setup.py").read_text()
    parts = re.findall(
        r"(?:APPS = |EVALUATION = |SERVING = |install_requires=)\[(.*?)\]",
        text,
        re.DOTALL,
    )
    assert len(parts) == 4
    for name in re.findall(r'"([\w-]+)>=', "".join(parts)):
        assert f"{name}==" in pinned, name


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    message = r"the data set 'digits' comes with scikit-learn: pip install "
    with pytest.raises(ImportError, match=message + r"'dd_keras\[apps\]'"):
        datasets.load("digits")


def test_typed_marker_is_beside_the_library():
    assert pathlib.Path(dd_keras.__file__).with_name("py.typed").is_file()


@pytest.mark.parametrize("folder", ["apps", "benchmarks", "dd_keras"])
def test_no_file_is_read_that_may_hold_code(folder):
    """NumPy, asked for it, runs what a pickle says."""
    for path in (ROOT / folder).rglob("*.py"):
        assert "allow_pickle=True" not in path.read_text(), path
        assert "import pickle" not in path.read_text(), path
