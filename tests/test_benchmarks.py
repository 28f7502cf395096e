"""The benchmarks run as README says, and their arithmetic is right."""

import json
import os
import time

import harness
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import program
from wide_head import with_classes

from dd_keras import attacks, networks

LENET = "savedmodels/mnist_lenet_reference.keras"


def run(script, *flags):
    """Runs a benchmark as a user would; returns what it printed."""
    done = program(f"benchmarks/{script}.py", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rows_of(path):
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["command"].startswith("python benchmarks/")
    assert results["machine"]["cpus"] == os.cpu_count()
    assert results["versions"]["tensorflow"] == tf.__version__
    return results["rows"]


# The harness


def test_variants_take_turns_and_ratios_are_for_equal_work():
    calls = []

    def work(name, seconds):
        def turn(number):
            calls.append((name, number))
            time.sleep(seconds)
            return tf.constant(1.0)

        return turn

    rows = harness.take_turns(
        {
            "slow": harness.Variant(
                work("slow", 0.06), ("fast", "slow"), work=2, details={"n": 7}
            ),
            "fast": harness.Variant(work("fast", 0.02)),
        },
        turns=3,
        warm_up=1,
    )
    order = [(name, n) for n in (0, 0, 1, 2) for name in ("slow", "fast")]
    assert calls == order
    assert rows["slow"]["median_ms"] == pytest.approx(60, rel=0.3)
    low, high = rows["slow"]["quartiles_ms"]
    assert low <= rows["slow"]["median_ms"] <= high
    assert rows["slow"]["ratios"]["fast"] == pytest.approx(1.5, rel=0.3)
    assert rows["slow"]["ratios"]["slow"] == 1
    assert rows["slow"]["ratio"] == rows["slow"]["ratios"]["fast"]
    assert rows["slow"]["n"] == 7
    assert "ratio" not in rows["fast"]


def test_results_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "results.json"
    harness.save(str(path), "name", {"row": {"ms": 1.0}}, turns=3)
    written = path.read_text(encoding="utf-8")
    assert json.loads(written)["turns"] == 3
    with pytest.raises(TypeError):
        harness.save(str(path), "name", {"row": object()})
    assert path.read_text(encoding="utf-8") == written


def test_table_has_a_dash_for_what_is_missing(capsys):
    rows = {"one": {"ms": 1.25}, "other": {}}
    harness.print_table(rows, {"ms": "{:.1f} ms"})
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["one", "1.2", "ms"],
        ["other", "-"],
    ]


# Their networks


def test_wide_head_leaves_the_attack_as_it_is():
    keras.utils.set_random_seed(0)
    network = networks.lenet()
    wide = with_classes(network, 100)
    assert wide.output_shape == (None, 100)
    x = 50 * np.random.default_rng(0).normal(size=(4, 28, 28, 1))
    np.testing.assert_allclose(wide(x)[:, :10], network(x), rtol=1e-5)
    found = attacks.DeepFool(max_iter=3).run(network, x)
    same = attacks.DeepFool(max_iter=3, candidates=10).run(wide, x)
    np.testing.assert_array_equal(same.iterations, found.iterations)
    np.testing.assert_allclose(same.perturbation, found.perturbation, atol=1e-4)
    assert with_classes(network, 10) is network


# The scripts, from end to end


def test_training_step(mnist_dir, tmp_path):
    path = tmp_path / "results.json"
    output = run(
        "training_step",
        f"--model={LENET}",
        f"--data_dir={mnist_dir}",
        "--batch_size=10",
        "--max_iter=2",
        "--classes=10",
        "--classes=20",
        "--turns=2",
        f"--output={path}",
    )
    rows = rows_of(path)
    assert [row["variant"] for row in rows.values()] == [
        "clean",
        "deep_defense",
        "deep_defense, candidates=5",
        "plain formulation",
        "clean",
        "deep_defense, candidates=10",
    ]
    wide = list(rows.values())[-1]
    assert len(wide["ratios"]) == 2  # its own clean step, and all ten classes
    assert wide["ratio"] > 1
    assert 1 <= wide["mean_iterations"] <= 2
    assert all(name in output for name in rows)


def test_deepfool(mnist_dir, tmp_path):
    path = tmp_path / "results.json"
    run(
        "deepfool",
        f"--model={LENET}",
        f"--data_dir={mnist_dir}",
        "--images=20",
        "--batch_size=10",
        "--batch_size=20",
        "--turns=2",
        f"--output={path}",
    )
    rows = rows_of(path)
    for size in (10, 20):
        ours = rows[f"dd_keras (batch {size})"]
        foolbox = rows[f"Foolbox, TensorFlow (batch {size})"]
        assert ours["fooled"] == foolbox["fooled"] == 1
        assert ours["rho2"] == pytest.approx(foolbox["rho2"], rel=0.03)
        assert foolbox["images"] == 20
        assert foolbox["ratio"] >= min(foolbox["ratios"].values())


def test_scaling_worker():
    setting = {
        "classes": 4,
        "candidates": 2,
        "max_iter": 3,
        "batch_size": 2,
        "size": 8,
        "depth": 1,
    }
    output = run("scaling", f"--setting={json.dumps(setting)}", "--turns=2")
    row = json.loads(output.splitlines()[-1])
    assert row["peak_mib"] > row["before_mib"] > 100
    assert row["median_ms"] > row["clean_ms"] > 0


def test_compilation_worker(mnist_dir):
    output = run(
        "compilation",
        f"--model={LENET}",
        f"--data_dir={mnist_dir}",
        "--batch_size=5",
        "--worker=xla",
    )
    row = json.loads(output.splitlines()[-1])
    assert row["relative_difference"] < 1e-4
    assert row["compile_s"] > 0


def test_input_pipeline(mnist_dir, tmp_path):
    path = tmp_path / "results.json"
    run(
        "input_pipeline",
        f"--model={LENET}",
        f"--data_dir={mnist_dir}",
        "--batch_size=10",
        "--images=40",
        "--turns=2",
        f"--output={path}",
    )
    rows = rows_of(path)
    assert len(rows) == 5
    assert all(row["ms_per_batch"] > 0 for row in rows.values())


def test_attacks(mnist_dir, tmp_path):
    path = tmp_path / "results.json"
    run(
        "attacks",
        f"--model={LENET}",
        "--preprocessing=savedmodels/mnist_preprocessing.keras",
        f"--data_dir={mnist_dir}",
        "--images=20",
        "--batch_size=20",
        "--turns=2",
        "--cw_steps=50",
        "--cw_images=5",
        f"--output={path}",
    )
    rows = rows_of(path)
    names = {row["attack"] for row in rows.values()}
    assert len(names) == 13
    for name in names:
        ours = rows[f"{name}: dd_keras"]
        theirs = rows[f"{name}: Foolbox, TensorFlow"]
        assert theirs["ratio"] > 0
        if name.startswith("FGSM"):
            exact = rows[f"{name}: Foolbox, float64"]
            assert ours["accuracy"] == exact["accuracy"]
        elif name.startswith("PGD"):
            assert ours["accuracy"] <= theirs["accuracy"] + 0.051  # an image
        else:
            assert ours["l2"] <= 1.05 * theirs["l2"]


def test_fgsm_variants(mnist_dir, tmp_path):
    path = tmp_path / "results.json"
    run(
        "fgsm_variants",
        f"--data_dir={mnist_dir}",
        "--images=20",
        f"--output={path}",
    )
    rows = rows_of(path)
    assert len(rows) == 32
    found = [row for row in rows.values() if row["eps_ref"]]
    assert len(found) >= 16
    for row in found:
        assert row["deep_defense"][-1] <= 0.5
        assert 0 < row["eps_ref"] <= 150


def test_evaluation_worker(mnist_dir):
    output = run(
        "evaluation",
        f"--model={LENET}",
        f"--data_dir={mnist_dir}",
        "--batch_size=20",
        "--worker=40",
    )
    row = json.loads(output.splitlines()[-1])
    assert row["images"] == row["summary"]["samples"] == 40
    assert row["peak_mib"] > row["evaluation_mib"] > 0
    assert row["seconds"] > 0
