"""The tables in README are those of the committed results."""

import json
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from dd_keras.serving import weights_hash

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNS = {"LeNet": "mnist_lenet", "MLP": "mnist_mlp"}
TITLES = {
    "reference": "reference",
    "clean": "fine-tuned, no regulariser",
    "deep_defense": "Deep Defense",
}


def loaded(path):
    return json.loads((ROOT / "results" / path).read_text(encoding="utf-8"))


def numbers(results, name):
    """The cells of a model's row, as README has them."""
    values = results["models"][name]
    return (
        f"{100 * values['accuracy']:.2f} %",
        f"{values['rho2']:.4f}",
        f"{values['rho2'] / results['models']['reference']['rho2']:.2f}",
        f"{values['l2']:.1f}",
    )


@pytest.mark.parametrize("network", RUNS)
def test_mnist_table_equals_results(network):
    results = loaded(f"{RUNS[network]}/results.json")
    for name, title in TITLES.items():
        cells = " | ".join(numbers(results, name))
        assert f"| {network}, {title} | {cells} |" in README.replace("**", "")
    assert results["command"] in README
    assert results["dataset"] == {
        "name": "mnist",
        "train": 60_000,
        "test": 10_000,
    }


def test_demo_table_equals_results():
    results = loaded("digits/results.json")
    for name, title in TITLES.items():
        row = re.escape(title) + "".join(
            r"\s+" + re.escape(cell) for cell in numbers(results, name)
        )
        assert re.search(row, README)


def benchmark(name):
    """The rows of a benchmark, whose command README must have."""
    results = loaded(f"benchmarks/{name}.json")
    assert results["command"] in README
    return results["rows"]


def row_of(rows, **wanted):
    """The one row with these settings."""
    found = [row for row in rows.values() if wanted.items() <= row.items()]
    assert len(found) == 1
    return found[0]


def test_step_costs_equal_benchmark():
    rows = benchmark("training_step")
    titles = {
        "clean": "clean",
        "plain formulation": "the paper's formulation, written down plainly",
        "deep_defense": "Deep Defense",
        "deep_defense, candidates=5": "Deep Defense, `candidates=5`",
    }
    base = {"network": "lenet", "batch_size": 100, "max_iter": 5, "classes": 10}
    for name, title in titles.items():
        row = row_of(rows, variant=name, **base)
        cells = f"{row['median_ms']:.1f} ms | {row['ratio']:.1f}"
        assert f"| {title} | {cells} |" in README
    wide = row_of(rows, variant="deep_defense, candidates=10", classes=1000)
    assert f"same body | {list(wide['ratios'].values())[1]:.2f} x |" in README


def test_deepfool_table_equals_benchmark():
    rows = benchmark("deepfool")
    for library in {row["library"] for row in rows.values()}:
        row = min(
            (row for row in rows.values() if row["library"] == library),
            key=lambda row: row["ms_per_image"],
        )
        cells = (
            f"{row['batch_size']} | {row['ms_per_image']:.2f} | "
            f"{row['ratio']:.1f} | {row['rho2']:.4f} | "
            f"{100 * row['fooled']:.1f} %"
        )
        assert f"| {library} | {cells} |" in README


def test_further_costs_equal_benchmarks():
    scaling, compilation, pipeline = (
        benchmark(name) for name in ("scaling", "compilation", "input_pipeline")
    )
    memory = (
        scaling["max_iter=50"]["peak_mib"] / scaling["max_iter=5"]["peak_mib"]
    )
    xla = compilation["xla"]
    for cells in (
        f"takes all steps | {memory:.2f} x |",
        f"XLA's compilation | {xla['compile_s']:.1f} s |",
        f"by XLA and without | {xla['relative_difference']:.0e} |",
        f"its trace | {compilation['fit']['first_step_s']:.1f} s |",
        f"batches in memory: clean | {pipeline['clean, fit']['ratio']:.2f} x |",
        "the same: Deep Defense | "
        f"{pipeline['deep_defense, fit']['ratio']:.2f} x |",
        f"a batch | {pipeline['pipeline alone']['ms_per_batch']:.2f} ms |",
    ):
        assert cells in README


@pytest.mark.parametrize("name", ["reference", "deep_defense"])
def test_saved_models_have_the_accuracy_of_the_results(name, mnist_data):
    folder = ROOT / "savedmodels"
    prepare = keras.saving.load_model(folder / "mnist_preprocessing.keras")
    model = keras.saving.load_model(folder / f"mnist_lenet_{name}.keras")
    images, labels = next(mnist_data.test.batch(10_000).as_numpy_iterator())
    logits = model.predict(prepare(images), batch_size=500, verbose=0)
    accuracy = np.mean(logits.argmax(-1) == labels)
    expected = loaded("mnist_lenet/results.json")["models"][name]["accuracy"]
    assert abs(accuracy - expected) < 2e-4  # rounding of another machine


def share(value):
    return f"{100 * value:.2f} %"


def test_comparison_tables_equal_results():
    results = loaded("mnist_lenet_comparison/comparison.json")
    assert results["command"] in README
    assert f"| {results['images']:,} images | accuracy |" in README
    assert f"| C&W and PASS: {results['few']:,} images |" in README
    assert f"eps_ref = {results['eps_ref']:.2f} (pixels" in README
    text = README.replace("**", "")
    for name in ("reference", "deep_defense"):
        found = {k: v[0] for k, v in results["models"][name].items()}
        one = (
            share(found["accuracy"]),
            f"{found['rho2']:.4f}",
            *(share(found[f"accuracy@{s}eps_ref"]) for s in ("0.2", "0.5", 1)),
        )
        two = (
            f"{found['l2']:.1f}",
            f"{found['rho_inf']:.2f}",
            f"{found['cw_l2']:.1f}",
            share(found["pgd_accuracy"]),
            f"{found['pass']:.4f}",
        )
        for cells in (one, two):
            assert f"| LeNet, {TITLES[name]} | {' | '.join(cells)} |" in text


def test_attack_table_equals_benchmark():
    rows = benchmark("attacks")
    for name in {row["attack"] for row in rows.values()}:
        ours, theirs, exact = (
            rows.get(f"{name}: {library}")
            for library in (
                "dd_keras", "Foolbox, TensorFlow", "Foolbox, float64"
            )
        )  # fmt: skip

        def quality(row, name=name):
            if row is None:
                return "-"
            if name.startswith(("FGSM", "PGD")):
                return f"{100 * row['accuracy']:.1f} %"
            return f"{row['l2']:.3f}"

        cells = (
            f"{ours['images']} | {ours['ms_per_image']:.2f} ms | "
            f"{theirs['ms_per_image']:.2f} ms | {theirs['ratio']:.1f} | "
            f"{quality(ours)} | {quality(theirs)} | {quality(exact)}"
        )
        assert f"| {name} | {cells} |" in README


def test_evaluation_row_equals_benchmark():
    few, many = benchmark("evaluation").values()
    assert f"of {many['images']:,} images: accuracy, rho_2" in README
    assert f"20 eps, PGD | {many['seconds']:.0f} s |" in README
    growth = many["peak_mib"] / few["peak_mib"]
    assert f"for {few['images']:,} images | {growth:.2f} x |" in README


def test_defences_table_equals_results():
    results = loaded("mnist_lenet_defenses/comparison/comparison.json")
    made = loaded("mnist_lenet_defenses/results.json")
    assert results["command"] in README
    assert made["command"] in README
    assert f"| one epoch, {results['images']:,} images |" in README
    assert f"eps_ref = {results['eps_ref']:.2f}. One epoch" in README
    for name, numbers in results["models"].items():
        found = {key: value[0] for key, value in numbers.items()}
        cells = (
            share(found["accuracy"]),
            f"{found['rho2']:.4f}",
            *(share(found[f"accuracy@{s}eps_ref"]) for s in ("0.2", "0.5", 1)),
            share(found["pgd_accuracy"]),
        )
        assert f"| {name} | {' | '.join(cells)} |" in README
    # What is compared is what the other command trained.
    for name, path in results["paths"].items():
        trained = made["models"][pathlib.Path(path).stem]
        assert results["models"][name]["rho2"][0] == pytest.approx(
            trained["rho2"], rel=1e-4
        )


def test_cifar10_table_equals_results():
    results = loaded("cifar10_convnet/results.json")
    assert results["command"] in README
    assert results["dataset"]["train"] == 50_000
    text = README.replace("**", "")
    for name in results["models"]:
        cells = " | ".join(numbers(results, name))
        assert f"| ConvNet, {TITLES[name]} | {cells} |" in text


def test_applications_are_as_readme_says():
    results = loaded("applications.json")
    assert results["command"] in README
    rows = results["rows"]
    assert f"{len(rows)} networks" in README
    for row in rows.values():
        assert row["error"] is None
        assert row["finite"]
        assert row["saved_and_loaded"]
        assert row["with_gradient"] == row["variables"]
        assert row["with_regularizer_gradient"] == row["variables"]


def test_serving_table_equals_benchmark():
    rows = benchmark("serving")
    titles = {
        name: f"`{name}`"
        for name in (
            "serving_default",
            "serve_encoded",
            "robustness",
            "robustness_encoded",
        )
    }
    titles["robustness, candidates=3"] = "`robustness` of 3 candidates"
    for name, title in titles.items():
        sizes = [rows[f"{name} (batch {size})"] for size in (1, 8, 64)]
        first = rows.get(f"first request: {name}")
        cells = (
            *(f"{row['median_ms']:.2f} ms" for row in sizes),
            f"{sizes[2]['images_per_s']:,.0f}",
            f"{sizes[0]['ratio']:.1f} to {sizes[2]['ratio']:.1f}",
            f"{first['first_ms']:.0f} ms" if first else "-",
            f"{first['warmed_ms']:.1f} ms" if first else "-",
        )
        assert f"| {title} | {' | '.join(cells)} |" in README
    ours = rows["dd_keras.export"]
    nodes = ours["graph_nodes"] + ours["function_nodes"]
    for words in (
        f"The export takes {ours['export_s']:.1f} s, loading it "
        f"{ours['load_s']:.2f} s and its warm-up requests "
        f"{ours['warm_up_s']:.1f} s; it has {ours['bytes'] / 1e6:.1f} MB, "
        f"{ours['saved_model_pb_bytes'] / 1e6:.2f} MB of it the graph of "
        f"{nodes:,} nodes",
    ):
        assert words in README


@pytest.mark.parametrize("name", ["reference", "deep_defense"])
def test_models_to_serve_are_those_to_use(name):
    """The committed exports have the weights, and the numbers, of the files."""
    folder = ROOT / "savedmodels"
    prepare = keras.saving.load_model(folder / "mnist_preprocessing.keras")
    model = keras.saving.load_model(folder / f"mnist_lenet_{name}.keras")
    version = folder / f"mnist/lenet_{name}/1"
    card = json.loads((version / "assets.extra/model_card.json").read_text())
    assert card["weights_sha256"] == weights_hash(model)
    assert card["made_by"] in (folder / "README.md").read_text()
    found = card["evaluation"]["numbers"]
    expected = loaded("mnist_lenet/results.json")["models"][name]
    assert found["samples"] == 10_000
    for key in ("accuracy", "rho2", "l2"):
        assert found[key] == pytest.approx(expected[key], rel=1e-4)
    images = np.random.RandomState(0).randint(0, 256, (9, 28, 28, 1))
    signature = tf.saved_model.load(version).signatures["serving_default"]
    answer = signature(images=tf.constant(images, tf.float32))
    np.testing.assert_allclose(
        answer["probabilities"],
        tf.nn.softmax(model(prepare(images))),
        atol=1e-5,
    )


def test_models_to_serve_are_small():
    exported = (ROOT / "savedmodels/mnist").rglob("*/1/**/*")
    size = sum(path.stat().st_size for path in exported if path.is_file())
    assert 1e6 < size < 10e6
