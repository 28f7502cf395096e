"""The soak: its slopes are right, a leak shows, and its rounds are kept."""

import importlib
import json
import os
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from conftest import shell

KEYS = ("resident_mib", "step_ms", "evaluation_ms", "objects")
ROUNDS, ROUND_S = 80, 30.0
LEAK_MIB = 0.5  # a round
MINUTES = 0.05  # of the soak that is run


@pytest.fixture(scope="module")
def soak():
    """The script as a module; its flags are undefined again afterwards."""
    with flagsaver.flagsaver():
        yield importlib.import_module("soak")
    sys.modules.pop("soak")


def made_up(leak_mib=0.0, filling_mib=0.0, noise_mib=1.0):
    """Rounds of a soak whose memory grows as told.

    Args:
        leak_mib: growth in each round.
        filling_mib: growth over the first quarter, in all, and no more.
        noise_mib: standard deviation.
    """
    rng = np.random.default_rng(0)
    rows = []
    for place in range(ROUNDS):
        filled = min(1.0, place / (ROUNDS // 4)) * filling_mib
        rows.append(
            {
                "seconds": ROUND_S * (place + 1),
                "resident_mib": 1000
                + place * leak_mib
                + filled
                + rng.normal(0, noise_mib),
                "step_ms": 100 + rng.normal(),
                "evaluation_ms": 900 + rng.normal(),
                "objects": 500_000,
            }
        )
    return rows


def test_slope_is_that_of_polyfit(soak):
    rng = np.random.default_rng(1)
    hours = np.cumsum(rng.uniform(0.001, 0.01, 50))  # rounds differ in length
    values = 3 - 7 * hours + rng.normal(size=50)
    (growth, _), covariance = np.polyfit(hours, values, 1, cov=True)
    assert soak.slope(hours, values) == pytest.approx(
        (growth, np.sqrt(covariance[0, 0]))
    )
    assert soak.slope([0, 1, 2], [5, 7, 9]) == pytest.approx((2, 0))


@pytest.mark.parametrize("key", KEYS)
def test_summary_leaves_out_the_first_quarter(soak, key):
    rows = made_up(leak_mib=LEAK_MIB, filling_mib=100)
    kept = rows[ROUNDS // 4 :]
    hours = [row["seconds"] / 3600 for row in kept]
    values = [row[key] for row in kept]
    found = soak.summary(rows)
    assert found["rounds"] == ROUNDS
    assert found[key]["growth_an_hour"] == pytest.approx(
        np.polyfit(hours, values, 1)[0], abs=1e-6
    )
    quarter = ROUNDS // 4
    assert found[key]["second_quarter"] == np.median(values[:quarter])
    assert found[key]["last_quarter"] == np.median(values[-quarter:])


def test_leak_is_told_from_noise_and_from_caches_that_fill(soak):
    leak = soak.summary(made_up(leak_mib=LEAK_MIB))["resident_mib"]
    expected = LEAK_MIB * 3600 / ROUND_S
    error = leak["standard_error"]
    assert leak["growth_an_hour"] == pytest.approx(expected, abs=3 * error)
    assert leak["growth_an_hour"] > 10 * error
    assert leak["last_quarter"] > leak["second_quarter"] + 15 * LEAK_MIB

    flat = soak.summary(made_up(filling_mib=100))["resident_mib"]
    assert abs(flat["growth_an_hour"]) < 3 * flat["standard_error"]
    assert flat["standard_error"] == pytest.approx(error, rel=0.01)


def test_leak_of_objects_is_exact(soak):
    rows = made_up()
    for place, row in enumerate(rows):
        row["objects"] += 252 * place
    found = soak.summary(rows)["objects"]
    assert found["growth_an_hour"] == pytest.approx(252 * 3600 / ROUND_S)
    assert found["standard_error"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_too_few_rounds_have_no_slope(soak, rounds):
    assert soak.summary(made_up()[:rounds]) == {}


@pytest.mark.thorough
def test_soak_of_seconds(tmp_path):
    path = tmp_path / "soak.json"
    done = shell(
        "benchmarks/soak.py",
        f"--minutes={MINUTES}",
        "--images=100",
        "--evaluated=20",
        "--reload_every=2",
        f"--output={path}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["benchmark"] == "soak"
    assert results["finished"] is True
    assert results["command"].startswith("python benchmarks/soak.py ")
    assert results["machine"]["cpus"] == os.cpu_count()
    rows = list(results["rows"].values())
    assert list(results["rows"]) == [str(n) for n in range(len(rows))]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert seconds[-1] >= 60 * MINUTES
    assert results["steps"] == len(rows)  # one batch a round
    for row in rows:
        assert set(row) == {"seconds", *KEYS}
        assert 100 < row["resident_mib"] < 10_000  # MiB, TensorFlow's own too
        assert all(row[key] > 0 for key in KEYS)


def test_killed_soak_leaves_its_rounds(soak, tmp_path):
    path = tmp_path / "soak.json"
    flags.FLAGS(["soak.py", f"--output={path}"])
    rows = made_up(leak_mib=LEAK_MIB)
    soak.save(rows, finished=False)
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["finished"] is False
    assert results["summary"] == soak.summary(rows)
    assert list(results["rows"].values()) == rows
