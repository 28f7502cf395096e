"""What programs print while they work: lines where bars do not fit."""

import math
import os
import re
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from absl import logging
from conftest import ROOT

from shared import cli, progress, quiet

import dd_keras


def fit(epochs, verbose=0, callbacks=()):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model = dd_keras.DefenseModel(model, activation="linear")
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = np.ones((4, 2)), np.zeros(4, int)
    model.fit(x, y, epochs=epochs, verbose=verbose, callbacks=callbacks)


def test_fit_has_a_line_an_epoch_where_stdout_is_a_file(capsys):
    fit(2, "auto")
    printed = capsys.readouterr().out
    assert printed.count("\n") == 4  # Keras' "Epoch 1/2", and its numbers
    assert "\b" not in printed
    assert "\r" not in printed


def test_fit_has_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    fit(1, "auto")
    assert "━" in capsys.readouterr().out
    assert progress.of_training() == []


@pytest.mark.parametrize(
    ("epochs", "told"),
    [(3, [1, 2, 3]), (25, [3, 6, 9, 12, 15, 18, 21, 24, 25])],
)
def test_programs_print_a_line_an_epoch_and_of_many_some(
    capsys, monkeypatch, epochs, told
):
    monkeypatch.setattr(progress.EpochLines, "_MINUTE", math.inf)
    fit(epochs, callbacks=progress.of_training())
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[1]) for line in lines] == told
    assert all(re.search(r": loss \d", line) for line in lines)
    assert all(len(line) <= 80 for line in lines)


def test_a_warning_is_a_line():
    with cli._short_warnings():
        line = warnings.formatwarning("mind this.", UserWarning, "a.py", 7)
    assert line == "warning: mind this.\n"
    assert "a.py:7" in warnings.formatwarning("x", UserWarning, "a.py", 7)


def test_loading_a_saved_model_is_quiet_but_for_the_unexpected(caplog):
    with quiet.expected():
        logging.warning("Importing a function with unsaved custom gradients.")
        logging.warning("Something else.")
    logging.warning("Importing a function with unsaved custom gradients.")
    assert [record.getMessage() for record in caplog.records] == [
        "Something else.",
        "Importing a function with unsaved custom gradients.",
    ]


def test_what_is_no_start_up_note_is_printed(capfd):
    with quiet._without_notes():
        os.write(2, b"I0000 00:00:17.4 5195 port.cc:153] oneDNN is on.\n")
        os.write(2, b"E0000 00:00:17.4 5195 other.cc:1] broken.\n")
    assert capfd.readouterr().err == (
        "E0000 00:00:17.4 5195 other.cc:1] broken.\n"
    )


def test_programs_start_without_notes_of_tensorflow():
    finished = subprocess.run(
        [sys.executable, "-c", "from shared import cli"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'apps'}"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")


def test_trainings_one_after_the_other_are_no_retracing(tmp_path, caplog):
    x, y = np.ones((4, 2), np.float32), np.zeros(4, int)
    logging.set_verbosity(logging.WARNING)
    for number in range(7):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        model.compile("sgd", "mse")
        dd_keras.resumable_fit(
            model, (x, y[:, None]), 1, tmp_path / str(number), verbose=0
        )
    ours = [r for r in caplog.records if "_build" in r.getMessage()]
    assert not ours
