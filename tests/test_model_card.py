"""Model cards: what is found out, what the user says, and both files."""

import json
import pathlib
import sys

import keras
import matplotlib.image
import numpy as np
import pytest
from conftest import thorough_but

import dd_keras
from dd_keras import attacks, datasets, evaluation, plots
from dd_keras.serving import weights_hash


def small_model(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((2, 2, 1)),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(3, name="scores"),
        ],
        name="small",
    )


def card_of(path, model, **options):
    """The card of an export as a dict, and its Markdown."""
    options.setdefault("attack", attacks.DeepFool(max_iter=2))
    version = pathlib.Path(dd_keras.export(model, path, **options))
    extra = version / "assets.extra"
    card = json.loads((extra / "model_card.json").read_text())
    return card, (extra / "model_card.md").read_text()


def test_what_is_found_out(tmp_path):
    model = small_model()
    card, page = card_of(tmp_path, model, class_names=["a", "b", "c"])
    assert card["name"] == "small"
    assert card["dataset"] is card["defense"] is card["evaluation"] is None
    assert card["architecture"] == {
        "name": "small",
        "parameters": 15,
        "layers": [
            {"name": "flatten", "type": "Flatten",
             "output_shape": [None, 4], "parameters": 0},
            {"name": "scores", "type": "Dense",
             "output_shape": [None, 3], "parameters": 15},
        ],
    }  # fmt: skip
    assert card["signatures"]["robustness"] == {
        "inputs": {
            "images": {"dtype": "float32", "shape": [None, 2, 2, 1]},
        },
        "outputs": {
            "classes": {"dtype": "int32", "shape": [None]},
            "rho": {"dtype": "float32", "shape": [None]},
            "l2": {"dtype": "float32", "shape": [None]},
            "nearest_class": {"dtype": "int32", "shape": [None]},
        },
    }
    assert "labels" in card["signatures"]["serving_default"]["outputs"]
    assert card["robustness_attack"] == repr(attacks.DeepFool(max_iter=2))
    assert card["weights_sha256"] == weights_hash(model)
    assert card["versions"]["dd_keras"] == dd_keras.__version__
    assert card["versions"]["keras"] == keras.__version__
    assert len(card["limits"]) >= 3
    assert page.startswith("# small\n")
    for words in (
        weights_hash(model),
        "Not measured.",
        "- **Data set**: not stated",
        "images: float32 (B, 2, 2, 1) to classes: int32 (B,), rho",
        "| scores",
        card["intended_use"],
        *card["limits"],
    ):
        assert words in page


@pytest.fixture(scope="module")
def report(trained_network):
    data = datasets.load("digits")
    test = datasets.batches(data.test, data.preprocessing, 100)
    return dd_keras.evaluate_robustness(
        trained_network,
        test,
        metrics=["accuracy", "rho2", evaluation.EpsSweep([10, 20])],
    )


@pytest.mark.slow
def test_what_was_measured(trained_network, report, tmp_path):
    card, page = card_of(tmp_path, trained_network, report=report)
    numbers = report.summary()
    assert card["evaluation"]["numbers"] == numbers
    assert card["evaluation"]["intervals_95"]["rho2"] == pytest.approx(
        report.intervals()["rho2"]
    )
    assert {"accuracy", "rho2", "l2", "fgsm_accuracy@10"} <= set(numbers)
    for words in (
        "fgsm_accuracy@20",
        f"{100 * numbers['accuracy']:.2f} %",
        f"{numbers['rho2']:.4f}",
        "rho2: mean length",
    ):
        assert words in page


@pytest.mark.slow
def test_what_was_measured_is_drawn(
    trained_network, report, tmp_path, monkeypatch
):
    drawn = {}

    def keep(name):
        draw = getattr(plots, name)

        def kept(data, *arguments, **options):
            drawn.setdefault(name, data)  # the page draws it again
            draw(data, *arguments, **options)

        monkeypatch.setattr(plots, name, kept)

    for name in (
        "robust_accuracy_curves", "success_rate_curves", "rho_histogram"
    ):  # fmt: skip
        keep(name)
    dd_keras.export(
        trained_network,
        tmp_path,
        report=report,
        class_names=[f"<b>{k}</b> 猫" for k in range(10)],
        warm_up_requests=False,
        card={"owner": "<i>me</i>", "training": {"epochs": 3}},
    )
    extra = tmp_path / "1" / "assets.extra"
    pictures = ["accuracy", "fgsm", "rho"]
    assert sorted(path.name for path in extra.iterdir()) == [
        "model_card.html",
        "model_card.json",
        "model_card.md",
        *(f"model_card_{name}.png" for name in pictures),
    ]
    assert sum(path.stat().st_size for path in extra.iterdir()) < 600_000
    page = (extra / "model_card.md").read_text()
    for name in pictures:
        assert f"](model_card_{name}.png)\n" in page
        assert matplotlib.image.imread(extra / f"model_card_{name}.png").std()
    assert "(model_card.html)\n" in page
    # What is drawn is what was measured.
    expected = report.robust_accuracy(distance="l2")["accuracy"]
    curve = drawn["robust_accuracy_curves"]["l2"]
    np.testing.assert_array_equal(curve["accuracy"], expected)
    rates = drawn["success_rate_curves"]["FGSM"]["success_rate"]
    numbers = report.summary()
    assert [1 - rate for rate in rates] == pytest.approx(
        [numbers["fgsm_accuracy@10"], numbers["fgsm_accuracy@20"]]
    )
    rho = drawn["rho_histogram"]["rho2"]
    np.testing.assert_array_equal(rho, report.values["rho2"])
    # The page has the card's words, and the figures once more.
    page = (extra / "model_card.html").read_text()
    assert page.count("<svg") >= 3
    for words in (
        weights_hash(trained_network),
        "intended use",
        "Nothing is certified",
        "&lt;i&gt;me&lt;/i&gt;",
        "&lt;b&gt;3&lt;/b&gt; 猫",
        f"{numbers['rho2']:#.4g}",
        "<dt>training / epochs</dt><dd>3</dd>",
    ):
        assert words in page, words
    assert "<i>me" not in page


@pytest.mark.slow
@pytest.mark.parametrize(
    "missing", thorough_but(["jinja2"], ["matplotlib", "jinja2"])
)
def test_without_a_library_the_text_is_the_same(
    report, tmp_path, monkeypatch, missing
):
    network = affine_digits()
    _, whole = card_of(tmp_path / "whole", network, report=report)
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "matplotlib":
        monkeypatch.setitem(sys.modules, "dd_keras.plots", None)
        monkeypatch.delattr(dd_keras, "plots")
    _, page = card_of(tmp_path / "part", network, report=report)
    left = sorted(
        path.name for path in (tmp_path / "part/1/assets.extra").iterdir()
    )
    assert "model_card.html" not in left
    assert any(name.endswith(".png") for name in left) == (missing == "jinja2")
    for name in left:
        assert whole.count(name) == page.count(name)
    lines = [line for line in whole.splitlines() if "](model_card" not in line]
    kept = [line for line in page.splitlines() if "](model_card" not in line]
    assert list(filter(None, kept)) == list(filter(None, lines))


def affine_digits():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def test_without_a_report_there_are_no_figures(tmp_path):
    _, page = card_of(tmp_path, small_model(), warm_up_requests=False)
    files = sorted(p.name for p in (tmp_path / "1/assets.extra").iterdir())
    assert files == ["model_card.json", "model_card.md"]
    assert "](model_card" not in page


def test_a_report_of_accuracy_alone_has_a_page_and_no_pictures(tmp_path):
    model = small_model()
    x, y = np.random.default_rng(0).normal(size=(9, 2, 2, 1)), np.arange(9) % 3
    report = dd_keras.evaluate_robustness(model, x, y, ["accuracy"])
    _, page = card_of(tmp_path, model, report=report, warm_up_requests=False)
    files = sorted(p.name for p in (tmp_path / "1/assets.extra").iterdir())
    assert files == ["model_card.html", "model_card.json", "model_card.md"]
    assert "![" not in page


def test_defense_is_read_off_its_wrapper(tmp_path):
    model = dd_keras.DeepDefenseModel(
        small_model(),
        lam=4.0,
        c=30.0,
        attack=attacks.DeepFool(max_iter=3, candidates=1),
        regularized_layers=["scores"],
    )
    card, page = card_of(tmp_path, model)
    assert card["defense"] == {
        "name": "DeepDefenseModel",
        "batch_norm": "trained",
        "gradient": "unrolled",
        "shrinkage": "exponential",
        "aggregation": "mean",
        "lam": 4.0,
        "c": 30.0,
        "d": 5.0,
        "attack": repr(attacks.DeepFool(max_iter=3, candidates=1)),
        "regularized_layers": ["scores"],
    }
    assert "- **Defence**: DeepDefenseModel (batch_norm trained, lam" in page


def test_what_the_user_says_is_what_counts(tmp_path):
    said = {
        "name": "Gates, June",
        "dataset": {"name": "photographs of gates", "train": 20_000},
        "defense": {"name": "Parseval", "beta": 1e-3},
        "intended_use": "Opening gates.",
        "limits": ["Not at night."],
        "owner": "the gate team",
        "date": "2026-06-01",
    }
    card, page = card_of(tmp_path, small_model(), card=said)
    assert {key: card[key] for key in said} == said
    for words in (
        "# Gates, June\n",
        "- **Data set**: photographs of gates (train 20000)",
        "- **Defence**: Parseval (beta 0.001)",
        "Opening gates.",
        "Not at night.",
        "- **owner**: the gate team",
        "- **Date**: 2026-06-01",
    ):
        assert words in page
    assert "Nothing is certified" not in page


def test_names_are_shown_as_they_are(tmp_path):
    """Those of classes come from the folders of others."""
    harmful = "<script>alert(1)</script>\n# [title](javascript:x)"
    shown = (
        r"&lt;script&gt;alert(1)&lt;/script&gt;\\n# "
        r"\[title\](javascript:x)"
    )
    said = {
        "name": harmful,
        "dataset": {"name": "photographs", "classes": [harmful, "b"]},
        "intended_use": "Use: <script>alert(1)</script> *well*.",
        "limits": ["<i>Not</i> at night.", "1 < 2 & 3"],
        harmful: harmful,
    }
    card, page = card_of(tmp_path, small_model(), card=said)
    assert {key: card[key] for key in said} == said
    assert "<" not in page.replace("&lt;", "")
    for words in (
        f"# {shown}\n",
        f"- **{shown}**: {shown}\n",
        "Use: &lt;script&gt;alert(1)&lt;/script&gt; *well*.",
        "1 &lt; 2 &amp; 3",
    ):
        assert words in page
    titles = [line for line in page.splitlines() if line.startswith("#")]
    assert len(titles) == 7


def test_hash_is_of_the_weights_alone(tmp_path):
    model = small_model()
    model.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    assert weights_hash(again) == weights_hash(model)
    softmax = keras.Sequential([*model.layers, keras.layers.Softmax()])
    softmax.build((None, 2, 2, 1))
    for same in (softmax, dd_keras.logits_model(softmax)):
        assert weights_hash(same) == weights_hash(model)
    assert len(weights_hash(model)) == 64
    kernel, bias = again.get_weights()
    kernel[0, 0] = np.nextafter(kernel[0, 0], np.float32(1e9))
    again.set_weights([kernel, bias])
    assert weights_hash(again) != weights_hash(model)
    assert weights_hash(small_model(1)) != weights_hash(model)
    # The same numbers in another shape are another network's.
    wide, narrow = (
        keras.Sequential(
            [keras.Input((n,)), keras.layers.Dense(6 // n, use_bias=False)]
        )
        for n in (2, 3)
    )
    narrow.set_weights([wide.get_weights()[0].reshape(3, 2)])
    assert weights_hash(wide) != weights_hash(narrow)
