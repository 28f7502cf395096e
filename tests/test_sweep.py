"""Figures 3 and 4: a sweep that can stop and go on."""

import csv
import json
import math
import shutil

import keras
import matplotlib.image
import numpy as np
import pytest
from absl import flags
from conftest import run

QUICK = (
    "--dataset=digits",
    "--limit=20",
    "--batch_size=20",
    "--epochs=1",
    "--learning_rate=1e-6",
)
GRID = ("--lams=5,15", "--cs=10")
NAMES = [
    "figure3_lam=5_c=10",
    "figure3_lam=15_c=10",
    "figure4_layer=affine",
    "figure4_layer=all",
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """An affine classifier of the digits."""
    path = tmp_path_factory.mktemp("reference") / "affine.keras"
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(10, name="affine"),
        ]
    )
    kernel = np.random.default_rng(0).normal(scale=1e-3, size=(64, 10))
    model.layers[-1].set_weights([kernel, np.zeros(10)])
    model.save(path)
    return path


def sweep(reference, directory, *arguments):
    run(
        "sweep",
        *QUICK,
        *GRID,
        f"--reference={reference}",
        f"--output_dir={directory}",
        *arguments,
    )


def files(directory):
    return {p.name: p.read_bytes() for p in (directory / "runs").iterdir()}


def rows(directory):
    with open(directory / "sweep.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def result(directory, name):
    return json.loads((directory / "runs" / f"{name}.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def stopped_and_gone_on(reference, tmp_path_factory):
    """A sweep in two parts: its directory, and its files after the first."""
    directory = tmp_path_factory.mktemp("sweep")
    sweep(reference, directory, "--max_runs=1")
    assert not (directory / "sweep.json").exists()
    first = files(directory)
    assert len(rows(directory)) == 1
    sweep(reference, directory)
    return directory, first


def test_goes_on_with_the_runs_that_are_missing(stopped_and_gone_on):
    directory, first = stopped_and_gone_on
    assert set(first) == {"reference.json", f"{NAMES[0]}.json"}
    after = files(directory)
    assert set(after) == {"reference.json", *(f"{n}.json" for n in NAMES)}
    for name, content in first.items():
        assert after[name] == content  # not run again


def test_csv_holds_the_numbers_of_the_runs(stopped_and_gone_on):
    directory, _ = stopped_and_gone_on
    found = rows(directory)
    assert [(r["figure"], r["lam"], r["c"], r["layer"]) for r in found] == [
        ("3", "5", "10", "all"),
        ("3", "15", "10", "all"),
        ("4", "15.0", "25.0", "affine"),
        ("4", "15.0", "25.0", "all"),
    ]
    for row, name in zip(found, NAMES, strict=True):
        curve = result(directory, name)["curve"]
        assert float(row["accuracy"]) == curve["accuracy"][-1]
        assert float(row["rho"]) == curve["rho"][-1] > 0


def test_only_the_layer_named_is_regularised(stopped_and_gone_on):
    directory, _ = stopped_and_gone_on
    layers = [
        result(directory, name)["settings"]["regularized_layers"]
        for name in NAMES
    ]
    assert layers == [None, None, ["affine"], None]
    # The network has no other layer: the two runs of Figure 4 are one.
    alone, everything = (result(directory, name)["curve"] for name in NAMES[2:])
    assert alone["rho"] == pytest.approx(everything["rho"], rel=1e-4)


def test_json_holds_all_once_all_are_done(stopped_and_gone_on):
    directory, _ = stopped_and_gone_on
    found = json.loads((directory / "sweep.json").read_text("utf-8"))
    assert list(found["runs"]) == NAMES
    for name in NAMES:
        assert found["runs"][name] == result(directory, name)
    assert found["reference"] == result(directory, "reference")
    assert found["total_seconds"] == sum(
        run["seconds"] for run in found["runs"].values()
    )
    assert found["command"].startswith("python ")


@pytest.mark.parametrize("damage", ["", "[]", '{"runs": '])
def test_damaged_json_of_all_is_written_again(
    reference, stopped_and_gone_on, tmp_path, damage
):
    directory, _ = stopped_and_gone_on
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    (tmp_path / "sweep.json").write_text(damage)
    sweep(reference, tmp_path)
    found = json.loads((tmp_path / "sweep.json").read_text("utf-8"))
    assert list(found["runs"]) == NAMES


@pytest.mark.parametrize("figure", ["figure3.png", "figure4.png"])
def test_figures_are_drawn(stopped_and_gone_on, figure):
    directory, _ = stopped_and_gone_on
    assert matplotlib.image.imread(directory / figure).std() > 0


def refused(reference, directory, *arguments):
    with pytest.raises((flags.Error, SystemExit)) as caught:
        sweep(reference, directory, *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_runs_of_other_settings_are_not_mixed(reference, stopped_and_gone_on):
    directory, _ = stopped_and_gone_on
    before = files(directory)
    line = refused(reference, directory, "--learning_rate=2e-6")
    assert (
        f"{NAMES[0]}.json: expected a run with learning_rate 2e-06; it is one"
        in line
    )
    assert "Choose another --output_dir." in line
    assert files(directory) == before


def test_damaged_run_is_named(reference, stopped_and_gone_on, tmp_path):
    directory, _ = stopped_and_gone_on
    runs = tmp_path / "runs"
    runs.mkdir()
    for name, content in files(directory).items():
        (runs / name).write_bytes(content)
    damaged = runs / f"{NAMES[1]}.json"
    damaged.write_bytes(damaged.read_bytes()[:100])
    line = refused(reference, tmp_path)
    assert f"{damaged}: expected the JSON of a run; it cannot be read" in line


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--figure=5", "--figure must be 3, 4, or 3,4."),
        ("--lams=much", "--lams: expected different numbers above 0"),
        ("--cs=0", "--cs: expected different numbers above 0"),
        ("--cs=5,5", "--cs: expected different numbers above 0"),
        ("--layers=conv9", "--layers: expected of ['affine'] and 'all'"),
        ("--epochs=0", "--epochs must be above 0."),
        ("--max_runs=-1", "flag --max_runs=-1"),
    ],
)
def test_bad_flags_are_refused(reference, tmp_path, argument, message):
    assert message in refused(reference, tmp_path, "--max_runs=0", argument)


def test_run_that_diverges_is_a_result(reference, tmp_path):
    sweep(
        reference,
        tmp_path,
        "--figure=3",
        "--lams=5",
        "--epochs=3",
        "--learning_rate=1e38",
    )
    assert result(tmp_path, NAMES[0])["curve"] is None
    (row,) = rows(tmp_path)
    assert (row["accuracy"], row["rho"]) == ("", "diverged")
    assert not (tmp_path / "figure3.png").exists()
    assert math.isfinite(float(row["seconds"]))
