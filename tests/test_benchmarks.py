"""The benchmarks run as README says, and their arithmetic is right."""

import json
import os
import time

import autoattack_report
import autoattack_sides
import efficientnet_lite0
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_board(mnist_dir, tmp_path):
    path = tmp_path / "results.json"
    run(
        "board",
        f"--model={LENET}",
        f"--data_dir={mnist_dir}",
        "--batch_size=10",
        "--images=20",
        "--samples=15",
        "--turns=2",
        f"--output={path}",
    )
    rows = rows_of(path)
    assert list(rows) == ["record", "validation on the same images", "epoch"]
    assert all(row["median_ms"] > 0 for row in rows.values())


@pytest.mark.thorough
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
        f"--output={path}",
    )
    rows = rows_of(path)
    names = {row["attack"] for row in rows.values()}
    assert len(names) == 12
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


@pytest.mark.thorough
def test_carlini_wagner(mnist_dir, tmp_path):
    path = tmp_path / "results.json"
    run(
        "carlini_wagner",
        f"--model={LENET}",
        "--preprocessing=savedmodels/mnist_preprocessing.keras",
        f"--data_dir={mnist_dir}",
        "--images=5",
        "--turns=1",
        "--steps=50",
        f"--output={path}",
    )
    rows = rows_of(path)
    assert {"dd_keras", "Foolbox, TensorFlow"} <= set(rows)
    for row in rows.values():
        assert row["fooled"] == 1
        assert row["processor_ms_per_image"] > 0
    assert rows["dd_keras"]["ratio"] == 1
    assert rows["dd_keras"]["l2"] <= rows["Foolbox, TensorFlow"]["l2"]


@pytest.mark.thorough
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


def autoattack(mnist_dir, folder, *given):
    """Runs benchmarks/autoattack.py on a few images; returns its results."""
    path = folder / "results.json"
    run(
        "autoattack",
        f"--data_dir={mnist_dir}",
        "--models=mlp_reference",
        "--balls=l2",
        "--images=6",
        "--part=4",
        f"--parts_dir={folder / 'parts'}",
        f"--output={path}",
        *given,
    )
    rows_of(path)
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.thorough
def test_autoattack_of_ours_goes_on_where_it_was(mnist_dir, tmp_path):
    given = (
        "--sides=ours", "--attacks=apgd-ce", "--batch_size=2", "--batch_size=4"
    )  # fmt: skip
    results = autoattack(mnist_dir, tmp_path, *given)
    (row,) = results["rows"].values()
    assert row["images"] == 6
    assert row["robust_accuracy"] <= row["accuracy"] == 1
    assert 1.4 < row["longest"] <= 1.5001
    assert row["batch_size"] in (2, 4)
    assert results["missing"] == []
    parts = sorted((tmp_path / "parts").iterdir())
    assert len(parts) == 3  # two parts, and the search for the batch size
    parts[1].unlink()
    left = [file.stat().st_mtime_ns for file in (parts[0], parts[2])]
    told = autoattack(mnist_dir, tmp_path, *given, "--report_only")
    assert told["rows"] == {}
    assert told["missing"] == [
        "mlp_reference, apgd-ce, l_2 1.5: dd_keras (1 of 2 parts)"
    ]
    (again,) = autoattack(mnist_dir, tmp_path, *given)["rows"].values()
    assert left == [file.stat().st_mtime_ns for file in (parts[0], parts[2])]
    assert again["robust_accuracy"] == row["robust_accuracy"]


@pytest.mark.thorough
def test_autoattack_of_both(mnist_dir, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("adv_lib")
    if autoattack_sides.find_original() is None:
        pytest.skip("the authors' package autoattack is not installed.")
    results = autoattack(
        mnist_dir, tmp_path, "--batch_size=4", "--attacks=apgd-ce,ddn,fab-l2"
    )
    assert results["missing"] == []
    compared = results["comparisons"]
    assert len(compared) == 3
    for name in ("ddn", "fab-l2"):
        ratio = compared[f"mlp_reference, {name}"]["l2_ratio"]
        assert ratio == pytest.approx(1, rel=0.02)
    assert len(results["rows"]) == 6
    assert all(row["cpu_s_per_image"] > 0 for row in results["rows"].values())


def test_autoattack_counts_what_only_one_side_fools(tmp_path):
    tasks = [
        autoattack_sides.Task("mlp_reference", "autoattack", "linf"),
        autoattack_sides.Task("mlp_reference", "ddn", "shortest"),
    ]
    part = {
        "batch_size": 3,
        "threads": 1,
        "load": 0.5,
        "right": "1110",
        "robust_there": None,
        "out_of_bounds": 0.0,
        "trace_seconds": None,
        "warnings": [],
    }
    made = {  # by task and side: robust, lengths, seconds
        (0, "ours"): ("1000", [0.0, 0.1, 0.1, 0.0], 1.0),
        (0, "original"): ("0100", [0.1, 0.0, 0.1, 0.0], 3.0),
        (1, "ours"): ("0000", [1.0, 2.0, 3.0, 0.0], 2.0),
        (1, "original"): ("0010", [1.0, 1.0, 0.0, 0.0], 2.0),
    }
    for (number, side), (robust, lengths, seconds) in made.items():
        path = autoattack_report.part_path(tmp_path, tasks[number], side, 0, 4)
        times = {"seconds": seconds, "cpu_seconds": seconds / 2}
        autoattack_report.write(
            part | times | {"robust": robust, "lengths": lengths}, path
        )

    def summary(chunks):
        sides = autoattack_sides.OURS, autoattack_sides.ORIGINAL
        return autoattack_report.summary(tmp_path, tasks, sides, chunks)

    rows, compared, agreement, missing = summary([(0, 4)])
    assert missing == []
    within, shortest = compared.values()
    assert within["only_ours_fools"] == [1]
    assert within["only_the_original_fools"] == [0]
    assert within["difference_in_points"] == 0
    assert within["cpu_speedup"] == 3
    assert shortest["l2"] == [1.5, 1.0]  # of images that both fool
    assert shortest["images"] == 2
    assert shortest["ours_longer_by_1_percent"] == 1
    assert agreement["weaker"] == ["mlp_reference, ddn"]
    title = "mlp_reference, autoattack, l_inf 0.1: original, PyTorch"
    assert rows[title]["ratio"] == 3
    assert rows[title]["robust_accuracy"] == 0.25
    assert rows["mlp_reference, ddn: dd_keras"]["l2"] == 2
    rows, _, _, missing = summary([(0, 4), (4, 8)])
    assert rows == {}
    assert len(missing) == 4


def test_keras_networks_are_the_same_in_pytorch():
    pytest.importorskip("torch")
    import in_pytorch

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((9, 8, 2)),
            layers.Rescaling(3.0, offset=-1.0),
            layers.Normalization(mean=0.5, variance=4.0),
            keras.Sequential(
                [
                    layers.Conv2D(4, 3, 2, activation="relu"),
                    layers.Conv2D(6, 3, padding="same", use_bias=False),
                    layers.MaxPooling2D(2),
                ]
            ),
            layers.Flatten(),
            layers.ReLU(),
            layers.Dense(7, activation="relu"),
            layers.Dense(3),
        ]
    )
    module = in_pytorch.converted(model)
    x = np.random.default_rng(0).normal(size=(5, 9, 8, 2)).astype("float32")
    difference, largest = in_pytorch.checked_difference(model, module, x)
    assert 0 <= difference < 1e-5 < largest
    back = in_pytorch.channels_last(in_pytorch.channels_first(x))
    np.testing.assert_array_equal(back, x)
    odd = keras.Sequential([keras.Input((3,)), layers.Dense(2, "softmax")])
    with pytest.raises(ValueError, match="activation 'softmax'"):
        in_pytorch.converted(odd)


@pytest.mark.thorough
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


# ImageNet's weights


def random_weights(stages, num_classes):
    """Weights by PyTorch's names and in its order of axes."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        fan_in = np.prod(shape[1:])
        return rng.normal(0, np.sqrt(2 / fan_in), shape).astype("float32")

    found = {}

    def add_norm(name, channels):
        for own, value in (
            ("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)
        ):  # fmt: skip
            found[f"{name}.{own}"] = np.full(channels, value, "float32")
        found[f"{name}.num_batches_tracked"] = np.array(9)

    found["_conv_stem.weight"] = normal(32, 3, 3, 3)
    add_norm("_bn0", 32)
    channels, number = 32, 0
    for blocks, size, _, expansion, filters in stages:
        for _ in range(blocks):
            name, wide = f"_blocks.{number}", expansion * channels
            if expansion != 1:
                found[f"{name}._expand_conv.weight"] = normal(
                    wide, channels, 1, 1
                )
                add_norm(f"{name}._bn0", wide)
            found[f"{name}._depthwise_conv.weight"] = normal(
                wide, 1, size, size
            )
            add_norm(f"{name}._bn1", wide)
            found[f"{name}._project_conv.weight"] = normal(filters, wide, 1, 1)
            add_norm(f"{name}._bn2", filters)
            channels, number = filters, number + 1
    found["_conv_head.weight"] = normal(1280, channels, 1, 1)
    add_norm("_bn1", 1280)
    found["_fc.weight"] = normal(num_classes, 1280)
    found["_fc.bias"] = normal(num_classes, 1)[:, 0]
    return found


def test_efficientnet_takes_all_weights_and_no_more():
    stages = ((1, 3, 1, 1, 16), (2, 5, 2, 6, 24))
    weights = random_weights(stages, 7)
    network = efficientnet_lite0.build(weights, 32, 7, stages)
    assert network.output_shape == (None, 7)
    # 32 / 2 / 2, twice halved; the second block of a stage is a shortcut.
    assert network.get_layer("_conv_head").output.shape == (None, 8, 8, 1280)
    assert [x.name for x in network.layers if "add" in x.name] == [
        "_blocks.2.add"
    ]
    depthwise = network.get_layer("_blocks.1._depthwise_conv").get_weights()[0]
    np.testing.assert_array_equal(
        depthwise[:, :, 5, 0], weights["_blocks.1._depthwise_conv.weight"][5, 0]
    )
    stem = network.get_layer("_conv_stem").get_weights()[0]
    np.testing.assert_array_equal(
        stem[:, :, 2, 9], weights["_conv_stem.weight"][9, 2]
    )
    with pytest.raises(ValueError, match="no more than used; \\['more"):
        efficientnet_lite0.build(
            weights | {"more.weight": np.zeros(3)}, 32, 7, stages
        )


@pytest.mark.thorough
def test_imagenet_scale_compares_with_foolbox(tmp_path):
    weights = random_weights(efficientnet_lite0.STAGES, 1000)
    np.savez(tmp_path / "weights.npz", **weights)
    path = tmp_path / "imagenet_scale.json"
    run(
        "imagenet_scale",
        f"--weights={tmp_path / 'weights.npz'}",
        "--images=2",
        "--image_size=32",
        "--turns=2",
        f"--output={path}",
    )
    rows = rows_of(path)
    ours, theirs = rows["DeepFool"], rows["DeepFool, Foolbox"]
    assert ours["fooled"] == 1
    assert ours["rho2"] == pytest.approx(theirs["rho2"], rel=0.2)
    for name in ("deep_defense, unrolled", "deep_defense, implicit"):
        assert rows[name]["ratio"] > 1
        assert rows[name]["memory"] > 0.5
