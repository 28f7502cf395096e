"""The example for keras.io: it runs, and alone, without dd_keras."""

import re
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT
from sklearn.datasets import load_digits

SCRIPT = ROOT / "examples" / "keras_io" / "deep_defense.py"


def test_it_has_the_header_that_keras_io_reads():
    header = SCRIPT.read_text("utf-8").split('"""')[1].strip().splitlines()
    fields = [line.partition(": ")[0] for line in header]
    assert fields == [
        "Title",
        "Author",
        "Date created",
        "Last modified",
        "Description",
        "Accelerator",
    ]
    dates = [line.partition(": ")[2] for line in header[2:4]]
    assert all(re.fullmatch(r"\d{4}/\d{2}/\d{2}", date) for date in dates)


@pytest.mark.thorough
def test_it_trains_a_more_robust_classifier(monkeypatch):
    """On digits of 8x8 pixels, enlarged: MNIST would be downloaded."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    images, labels = load_digits(return_X_y=True)
    images = np.kron(images.reshape(-1, 8, 8), np.ones((3, 3)))
    images = np.pad(images * 255 / 16, ((0, 0), (2, 2), (2, 2)))
    train = images[:1500], labels[:1500]
    test = images[1500:], labels[1500:]
    monkeypatch.setattr(
        keras.datasets.mnist, "load_data", lambda: (train, test)
    )
    drawn = []
    monkeypatch.setattr(pyplot, "show", lambda: drawn.append(pyplot.gcf()))
    monkeypatch.setitem(sys.modules, "dd_keras", None)  # import fails

    found = {"__name__": "__main__"}
    exec(compile(SCRIPT.read_text("utf-8"), str(SCRIPT), "exec"), found)

    (figure,) = drawn
    assert len(figure.axes) == 12
    pyplot.close(figure)
    accuracy, rho, robust = np.array([found["before"], found["after"]]).T
    assert accuracy[1] > accuracy[0] - 0.03
    assert rho[1] > 1.05 * rho[0]
    assert robust[1] > robust[0]
