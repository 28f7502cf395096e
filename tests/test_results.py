"""The tables in README are those of the committed results."""

import json
import pathlib
import re

import keras
import numpy as np
import pytest

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


def test_step_costs_equal_benchmark():
    results = loaded("benchmarks/training_step.json")
    for name, values in results["variants"].items():
        cells = (
            f"{values['median_ms']:.1f} ms | "
            f"{values['median_ratio_to_clean']:.1f}"
        )
        assert f"| {name} | {cells} |" in README
    assert results["command"] in README


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
