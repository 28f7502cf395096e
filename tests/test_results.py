"""The numbers in README, docs/ and the guide to results/ are the results'."""

import json
import pathlib
import shlex
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from paper import experiments
from paper.experiments import EXPERIMENTS
from paper.mnist import TUNED
from paper.tables import seeds_text

from dd_keras.serving import weights_hash

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "docs/how_to").glob("*.md"),
    *(ROOT / "docs/results").glob("*.md"),
]
README = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
GUIDE = (ROOT / "results/README.md").read_text(encoding="utf-8")
MNIST = ROOT / "results/mnist"
NETWORKS = ("mlp", "lenet")
TITLES = {
    "reference": "reference",
    "clean": "fine-tuned, no regulariser",
    "deep_defense": "Deep Defense",
}


def loaded(path):
    return json.loads((ROOT / "results" / path).read_text(encoding="utf-8"))


def tells(*numbers):
    """Whether a line of README or docs/, of a table, has all these numbers."""
    return any(
        all(number in line for number in numbers)
        for line in README.replace("**", "").splitlines()
    )


def numbers(results, name):
    """The cells of a model's row, as the pages have them."""
    values = results["models"][name]
    return (
        f"{100 * values['accuracy']:.2f} %",
        f"{values['rho2']:.4f}",
        f"{values['rho2'] / results['models']['reference']['rho2']:.2f}",
        f"{values['l2']:.1f}",
    )


@pytest.fixture(scope="module")
def plan():
    """The committed results of MNIST, and what presents them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["apps/reproduce.py"])
        yield experiments.plan("results/mnist", "tensorflow_datasets")


TABLES = ("table1_mnist", "table2_mnist", "limits_mnist", "tuning_mnist")
FIGURES = [
    *(f"figure{n}_{network}" for n in "2567" for network in NETWORKS),
    "figure3",
    "figure4",
]


@pytest.mark.parametrize("name", TABLES)
def test_tables_equal_results(plan, monkeypatch, name):
    """From what each command wrote to what a reader sees."""
    monkeypatch.chdir(ROOT)
    experiment = EXPERIMENTS[name]
    results = loaded(f"mnist/{name}.json")
    assert results["numbers"] == json.loads(json.dumps(experiment.make(plan)))
    text = experiment.text(results["numbers"])
    assert (MNIST / f"{name}.md").read_text(encoding="utf-8") == text + "\n"
    assert text in GUIDE


def test_first_table_equals_results():
    numbers = loaded("mnist/table1_mnist.json")["numbers"]
    assert seeds_text(numbers) in README


# Figures 3, 4, 6 and 7 are of an earlier commit's commands, and of less
# extent; the guide says so.
@pytest.mark.parametrize("name", [*TABLES, "figure2", "figure5"])
def test_results_were_made_by_these_commands(plan, monkeypatch, name):
    """In full, by the commands of today, from committed code."""
    monkeypatch.chdir(ROOT)
    results = loaded(f"mnist/{name}.json")
    assert results["smoke"] is False
    steps = plan.needed(EXPERIMENTS[name].steps(plan))
    assert set(results["made_by"]) == {step.name for step in steps}
    for step in steps:
        made = results["made_by"][step.name]
        words = shlex.split(made["command"])[1:]
        assert sorted(words) == sorted(plan.command(step))
        assert len(made["commit"]) == 40  # without changes beside it
        assert made["total_seconds"] > 0


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_shown(name):
    assert f"(mnist/{name}.png)" in GUIDE
    assert (MNIST / f"{name}.png").stat().st_size > 10_000


def test_defences_are_set_to_the_best_trials():
    from_trials = loaded("mnist/tuning_mnist.json")["numbers"]
    for network in NETWORKS:
        best = {}
        for settings in from_trials[network]["best"].values():
            best |= settings
        assert TUNED[network] == best


def test_three_seeds_meet_the_paper():
    """What results/README.md says of the means."""
    numbers = loaded("mnist/table1_mnist.json")["numbers"]

    def mean(network, name, key):
        values = numbers[network]["seeds"][name][key]
        assert len(values) == 3
        return sum(values) / 3

    assert mean("lenet", "longer", "accuracy") >= 0.993
    for name in ("deep_defense", "longer"):
        assert mean("lenet", name, "ratio") >= 1.38
        assert mean("mlp", name, "ratio") >= 2.0
        assert mean("mlp", name, "accuracy") >= mean(
            "mlp", "reference", "accuracy"
        )


def test_demo_table_equals_results():
    results = loaded("digits/results.json")
    for name, title in TITLES.items():
        assert tells(title, *numbers(results, name))


def benchmark(name):
    """The rows of a benchmark."""
    return loaded(f"benchmarks/{name}.json")["rows"]


def row_of(rows, **wanted):
    """The one row with these settings."""
    found = [row for row in rows.values() if wanted.items() <= row.items()]
    assert len(found) == 1
    return found[0]


def test_step_costs_equal_benchmark():
    rows = benchmark("training_step")
    variants = (
        "clean",
        "plain formulation",
        "deep_defense",
        "deep_defense, candidates=5",
    )
    base = {"network": "lenet", "batch_size": 100, "max_iter": 5, "classes": 10}
    for name in variants:
        row = row_of(rows, variant=name, **base)
        assert tells(f"{row['median_ms']:.1f} ms", f"{row['ratio']:.1f}")
    wide = row_of(rows, variant="deep_defense, candidates=10", classes=1000)
    assert tells(f"{list(wide['ratios'].values())[1]:.2f} x")


def test_costs_of_the_defences_equal_benchmark():
    for name, row in benchmark("defenses").items():
        assert name.startswith("lenet: ")
        if not name.endswith(": clean"):
            assert tells(f"{row['median_ms']:.1f} ms", f"{row['ratio']:.1f}")
        if "implicit" in name and "memory" in row:
            assert tells(f"{100 * row['memory'] - 100:.0f} % more memory")


def test_deepfool_table_equals_benchmark():
    rows = benchmark("deepfool")
    for library in {row["library"] for row in rows.values()}:
        row = min(
            (row for row in rows.values() if row["library"] == library),
            key=lambda row: row["ms_per_image"],
        )
        assert tells(
            library,
            f"{row['batch_size']}",
            f"{row['ms_per_image']:.2f}",
            f"{row['ratio']:.1f}",
            f"{row['rho2']:.4f}",
            f"{100 * row['fooled']:.1f} %",
        )


def test_further_costs_equal_benchmarks():
    scaling, compilation, pipeline, board = (
        benchmark(name)
        for name in ("scaling", "compilation", "input_pipeline", "board")
    )
    record = board["record"]
    memory = (
        scaling["max_iter=50"]["peak_mib"] / scaling["max_iter=5"]["peak_mib"]
    )
    xla = compilation["xla"]
    for number in (
        f"{memory:.2f} x",
        f"{xla['compile_s']:.1f} s",
        f"{xla['relative_difference']:.0e}",
        f"{compilation['fit']['first_step_s']:.1f} s",
        f"{pipeline['clean, fit']['ratio']:.2f} x",
        f"{pipeline['deep_defense, fit']['ratio']:.2f} x",
        f"{pipeline['pipeline alone']['ms_per_batch']:.2f} ms",
        f"{record['median_ms'] / 1000:.1f} s |",
        f"{record['ratio']:.2f} x |",
    ):
        assert tells(number)


# The models in savedmodels/, and the run whose results are theirs.
MODELS = [
    (network, name, f"mnist/{network}_{run}/results.json")
    for network in NETWORKS
    for name, run in (("reference", "seed0"), ("deep_defense", "longer0"))
]


@pytest.mark.parametrize(("network", "name", "results"), MODELS)
def test_saved_models_have_the_accuracy_of_the_results(
    network, name, results, mnist_data
):
    folder = ROOT / "savedmodels"
    prepare = keras.saving.load_model(folder / "mnist_preprocessing.keras")
    model = keras.saving.load_model(folder / f"mnist_{network}_{name}.keras")
    images, labels = next(mnist_data.test.batch(10_000).as_numpy_iterator())
    logits = model.predict(prepare(images), batch_size=500, verbose=0)
    accuracy = np.mean(logits.argmax(-1) == labels)
    expected = loaded(results)["models"][name]["accuracy"]
    assert abs(accuracy - expected) < 2e-4  # rounding of another machine


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

        assert tells(
            name,
            f"{ours['images']}",
            f"{ours['ms_per_image']:.2f} ms",
            f"{theirs['ms_per_image']:.2f} ms",
            f"{theirs['ratio']:.1f}",
            *(quality(row) for row in (ours, theirs, exact)),
        )


def test_carlini_wagner_table_equals_benchmark():
    rows = benchmark("carlini_wagner")
    images = loaded("benchmarks/carlini_wagner.json")["images"]
    assert tells(f"Carlini and Wagner, {images} MNIST test images")
    assert len(rows) == 3
    for name, row in rows.items():
        assert tells(
            f"| {name} |",
            f"{row['ms_per_image']:.1f} ms | {row['ratio']:.1f} |",
            f"{row['processor_ms_per_image']:.1f} ms | "
            f"{row['processor_ratio']:.1f} |",
            f"| {row['l2']:.3f} | {100 * row['fooled']:.1f} % |",
        )


def test_imagenet_scale_equals_benchmark():
    rows = benchmark("imagenet_scale")
    results = loaded("benchmarks/imagenet_scale.json")
    ours, theirs = rows.pop("DeepFool"), rows.pop("DeepFool, Foolbox")
    assert tells(
        f"{results['images']} images of ImageNet",
        f"({100 * results['accuracy']:.0f} % right)",
        f"a mean rho_2 of {ours['rho2']:.5f} (Foolbox: {theirs['rho2']:.5f};",
        f"in {ours['median_ms']:,.0f} ms; Foolbox takes "
        f"{theirs['ratio']:.1f} times as long",
    )
    assert len(rows) == 4
    for name, row in rows.items():
        assert tells(
            f"| {name} | {row['median_ms']:,.0f} ms | "
            f"{row.get('ratio', 1):.1f} | {row['memory']:.2f} |"
        )


def test_evaluation_row_equals_benchmark():
    few, many = benchmark("evaluation").values()
    assert tells(f"{many['images']:,}", f"{many['seconds']:.0f} s")
    growth = many["peak_mib"] / few["peak_mib"]
    assert tells(f"{few['images']:,}", f"{growth:.2f} x")


def test_cifar10_table_equals_results():
    results = loaded("cifar10_convnet/results.json")
    assert results["dataset"]["train"] == 50_000
    for name in results["models"]:
        assert tells(TITLES[name], *numbers(results, name))


def test_applications_are_as_readme_says():
    results = loaded("applications.json")
    rows = results["rows"]
    assert tells(str(len(rows)))
    for row in rows.values():
        assert row["error"] is None
        assert row["finite"]
        assert row["saved_and_loaded"]
        assert row["with_gradient"] == row["variables"]
        assert row["with_regularizer_gradient"] == row["variables"]


def test_serving_table_equals_benchmark():
    rows = benchmark("serving")
    for name in (
        "serving_default",
        "serve_encoded",
        "robustness",
        "robustness_encoded",
        "robustness, candidates=3",
    ):
        sizes = [rows[f"{name} (batch {size})"] for size in (1, 8, 64)]
        first = rows.get(f"first request: {name}")
        cells = (
            *(f"{row['median_ms']:.2f} ms" for row in sizes),
            f"{sizes[2]['images_per_s']:,.0f}",
            f"{sizes[0]['ratio']:.1f} to {sizes[2]['ratio']:.1f}",
            f"{first['first_ms']:.0f} ms" if first else "-",
            f"{first['warmed_ms']:.1f} ms" if first else "-",
        )
        assert tells(*cells)
    ours = rows["dd_keras.export"]
    nodes = ours["graph_nodes"] + ours["function_nodes"]
    for number in (
        f"{ours['export_s']:.1f} s",
        f"{ours['load_s']:.2f} s",
        f"{ours['warm_up_s']:.1f} s",
        f"{ours['bytes'] / 1e6:.1f} MB",
        f"{ours['saved_model_pb_bytes'] / 1e6:.2f} MB",
        f"{nodes:,}",
    ):
        assert tells(number)


@pytest.mark.parametrize(("network", "name", "results"), MODELS)
def test_models_to_serve_are_those_to_use(network, name, results):
    """The committed exports have the weights, and the numbers, of the files."""
    folder = ROOT / "savedmodels"
    prepare = keras.saving.load_model(folder / "mnist_preprocessing.keras")
    model = keras.saving.load_model(folder / f"mnist_{network}_{name}.keras")
    version = folder / f"mnist/{network}_{name}/1"
    card = json.loads((version / "assets.extra/model_card.json").read_text())
    assert card["weights_sha256"] == weights_hash(model)
    assert card["made_by"] in (folder / "README.md").read_text()
    found = card["evaluation"]["numbers"]
    expected = loaded(results)["models"][name]
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


def test_saved_models_are_small():
    files = [p for p in (ROOT / "savedmodels").rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files if "digits" not in p.parts)
    assert 5e6 < size < 20e6


def test_published_classifiers_came_through():
    path = ROOT / "results/classifiers.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    rows, stages = results["rows"], results["stages"]
    assert all(row["worked"] == stages for row in rows.values())
    ratios = sorted(row["ratio"] for row in rows.values())
    assert tells(str(len(rows)))
    for ratio in (ratios[0], ratios[-1], np.median(ratios)):
        assert tells(f"{ratio:.1f}")


@pytest.mark.parametrize("network", [*NETWORKS, "convnet"])
def test_best_known_distances_equal_results(network):
    """README's and the guide's rows are those of what compare.py measured."""
    folder = ROOT / "results" / "best_known" / network
    best = loaded(f"best_known/{network}/comparison.json")["best_known"]
    table = (folder / "table3.md").read_text(encoding="utf-8").strip()
    assert table in GUIDE + README
    for name, estimates in best["models"].items():
        row = next(
            line for line in table.splitlines() if line.startswith(f"| {name} ")
        )
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        for key, cell in zip(
            ("accuracy", "l2", "gain_l2", "l2_best", "gain_l2_best",
             "autoattack_accuracy"),
            cells[1:],
            strict=True,
        ):  # fmt: skip
            number = float(cell.split()[0])
            share = 100 if cell.endswith("%") else 1
            assert number == pytest.approx(share * estimates[key][0], rel=2e-3)
    ours = best["models"]["deep_defense"]
    gains = [f"{ours[key][0]:.2f}" for key in ("gain_l2", "gain_l2_best")]
    assert tells(*gains, f"{best['images']:,}")


@pytest.mark.parametrize("network", NETWORKS)
def test_both_forms_of_fgsm_equal_results(network):
    found = loaded(f"best_known/{network}/comparison.json")
    published = json.loads((ROOT / "apps/paper/published.json").read_text())
    title = {"mlp": "MLP", "lenet": "LeNet"}[network]
    for form in ("eps_ref", "paper_eps_ref"):
        assert f"{found[form]:.1f}" in GUIDE
    for name in ("reference", "deep_defense"):
        ours = found["models"][name]
        paper = published["table1"]["mnist"][network][name]
        shares = ("0.2", "0.5", "1")
        expected = [
            *(ours[f"accuracy@{share}eps_ref"][0] for share in shares),
            *(ours[f"paper_accuracy@{share}eps_ref"][0] for share in shares),
            *(paper[f"accuracy@{share}eps_ref"] for share in shares),
        ]
        (row,) = [
            line.split("|")[3:-1]
            for line in GUIDE.splitlines()
            if [cell.strip() for cell in line.split("|")[1:3]]
            == [title, TITLES[name]]
        ]
        assert [cell.strip() for cell in row] == [
            f"{100 * value:.2f} %" for value in expected
        ]


ALONE = {
    "apgd-ce": "APGD, cross-entropy",
    "apgd-t": "APGD, targeted DLR",
    "fab-t": "FAB, targeted",
    "square": "Square",
    "ddn": "DDN",
    "fab-l2": "FAB",
}


def test_autoattack_on_ten_thousand_images_equals_results():
    found = loaded("autoattack_10000/evaluation.json")
    assert found["images"] == 10_000
    value, low, high = found["numbers"]["autoattack_accuracy"]
    seconds = loaded("benchmarks/autoattack.json")["rows"][
        "lenet_reference, autoattack, l_inf 0.1: dd_keras"
    ]["cpu_s_per_image"]
    minutes = seconds * found["images"] / 60
    assert tells(
        f"{100 * value:.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{seconds:.3f} s an image",
        f"{minutes:.0f} minutes of one core, {minutes / 2:.0f} of two",
    )


def test_autoattack_beside_its_authors_code_equals_results():
    """And nowhere is ours weaker by half a point."""
    found = loaded("benchmarks/autoattack.json")
    assert found["comparisons"]
    assert not found["missing"]
    for name, row in found["comparisons"].items():
        model, attack, *place = name.split(", ")
        if "l2_ratio" in row:  # DDN and FAB: mean distances
            assert row["l2_ratio"] < 1.01
            pair = [f"{l2:.3f}" for l2 in row["l2"]]
        else:
            assert not row["weaker"]
            pair = [f"{100 * share:.1f}" for share in row["robust_accuracy"]]
        if attack != "autoattack":
            title = ", ".join([ALONE[attack], *(place or ["mean l_2"])])
            speedup = f"({row['cpu_speedup']:.1f})"
            assert tells(f"| {title} |", f"{', '.join(pair)} {speedup}")
            continue
        (ball,) = place
        network, _, kind = model.partition("_")
        title = {"mlp": "MLP", "lenet": "LeNet"}[network]
        ours = found["rows"][f"{name}: dd_keras"]
        assert tells(
            f"| {title}, {TITLES[kind]}, {ball} |",
            *(f"{100 * accuracy:.1f} %" for accuracy in row["robust_accuracy"]),
            f"{len(row['only_ours_fools'])}, "
            f"{len(row['only_the_original_fools'])}",
            f"{ours['cpu_s_per_image']:.3f}",
            f"{row['cpu_speedup']:.1f} |",
        )
