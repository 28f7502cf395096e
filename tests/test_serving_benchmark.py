"""The benchmark of serving runs as its docstring says, and adds up."""

import keras
import pytest
from conftest import program
from test_benchmarks import rows_of

from dd_keras import networks

SIGNATURES = [
    "serving_default",
    "serve_encoded",
    "robustness",
    "robustness_encoded",
]
BATCH_SIZES = (2, 3)


pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """What it prints, and its rows, for a small network of 8x8 images."""
    directory = tmp_path_factory.mktemp("serving")
    keras.utils.set_random_seed(0)
    networks.digits_cnn().save(directory / "digits.keras")
    preprocessing = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255)]
    )
    preprocessing.save(directory / "preprocessing.keras")
    path = directory / "results.json"
    done = program(
        "benchmarks/serving.py",
        f"--model={directory / 'digits.keras'}",
        f"--preprocessing={directory / 'preprocessing.keras'}",
        *(f"--batch_size={size}" for size in BATCH_SIZES),
        "--candidates=3",
        "--turns=2",
        "--processes=1",
        f"--output={path}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, rows_of(path)


def test_all_is_measured_and_printed(result):
    printed, rows = result
    timed = ["keras export", *SIGNATURES, "robustness, candidates=3"]
    assert list(rows) == [
        "dd_keras.export",
        "keras export",
        *(f"first request: {name}" for name in timed[:-1]),
        *(f"{name} (batch {size})" for size in BATCH_SIZES for name in timed),
    ]
    assert all(f"{name}  " in printed for name in rows)


def test_exports_have_sizes_and_times(result):
    _, rows = result
    for name in ("dd_keras.export", "keras export"):
        row = rows[name]
        assert row["export_s"] > 0
        assert row["load_s"] > 0
        weights = 4 * networks.digits_cnn().count_params()
        assert row["variables_bytes"] > weights
        parts = row["saved_model_pb_bytes"] + row["variables_bytes"]
        assert row["bytes"] > parts
        assert row["graph_nodes"] > 0
    ours, theirs = (
        rows[name]["function_nodes"]
        for name in ("dd_keras.export", "keras export")
    )
    assert ours > theirs > 0  # checks and an attack are part of it


def test_first_requests_are_timed_cold_and_warmed_up(result):
    _, rows = result
    for name in SIGNATURES:
        row = rows[f"first request: {name}"]
        assert row["batch_size"] == BATCH_SIZES[0]
        assert row["first_ms"] > 0
        assert row["warmed_ms"] > 0
    assert rows["dd_keras.export"]["warm_up_s"] > 0
    assert "warmed_ms" not in rows["first request: keras export"]


def test_latencies_agree_with_ratios_and_throughput(result):
    _, rows = result
    latencies = [row for row in rows.values() if "median_ms" in row]
    assert len(latencies) == 12
    for row in latencies:
        size = row["batch_size"]
        low, high = row["quartiles_ms"]
        assert low <= row["median_ms"] <= high
        assert row["images_per_s"] * row["median_ms"] == pytest.approx(
            1000 * size
        )
        assert row["ratio"] == row["ratios"][f"keras export (batch {size})"]
        assert row["ratios"][f"serving_default (batch {size})"] > 0
        # Of two turns, both lie between the quartiles, as harness has them.
        fastest, slowest = rows[f"keras export (batch {size})"]["quartiles_ms"]
        assert low <= row["ratio"] * slowest
        assert row["ratio"] * fastest <= high
    for size in BATCH_SIZES:
        assert rows[f"keras export (batch {size})"]["ratio"] == 1
