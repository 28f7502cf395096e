"""Every layer's second derivative is right, or it is refused.

The judge is the value, by central differences: `second_derivatives.judge`. The
catalogue is `layer_forms`; both are in benchmarks/, whose layers.py writes
the table of what is found for all forms. Here one form of each layer is judged,
and all forms of those whose derivatives dd_keras computes itself; with
DD_KERAS_TEST_ALL=1 all forms of all layers.
"""

import contextlib
import json
import re
import sys
import types

import keras
import layer_forms
import pytest
import second_derivatives
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from conftest import ROOT, THOROUGH, program, thorough_but

from dd_keras.attacks import derivatives

# What Keras adds comes on top, see `test_new_layers_are_judged`.
FORMS = [*layer_forms.listed(), *layer_forms.new_activations()]
BY_TITLE = {form.title: form for form in FORMS}
# Layers and operations whose derivatives dd_keras replaces, by their names.
REPLACED = (
    "LayerNormalization",
    "GroupNormalization",
    "BatchNormalization",
    "Resizing",
    "MaxPooling2D",
    "activations.softsign",
    "tf.nn.moments",
    "tf.image.resize",
)
# Of all other layers the first form. Some later ones take very long: grouped
# convolutions are compiled anew in each step.
_FIRST = {form.name: form for form in reversed(FORMS)}
JUDGED = [
    form
    for form in FORMS
    if THOROUGH or form.name in REPLACED or form is _FIRST[form.name]
]
# Those, and one of each kind that networks are made of.
QUICK = [
    form
    for form in JUDGED
    if form.name in REPLACED
    or form.name
    in ("Dense", "Conv2D", "LSTM", "MultiHeadAttention", "Dropout", "Embedding")
]
# Control flow, and what is replaced, differ in graphs and under XLA.
QUICK_COMPILED = [
    ("graph", "LayerNormalization()"),
    ("graph", "Resizing(height=4, width=9, interpolation='nearest')"),
    ("graph", "tf.while_loop()"),
    ("xla", "LayerNormalization()"),
]
COMPILED = [
    *QUICK_COMPILED,
    ("graph", "LSTM(units=3)"),
    ("graph", "GRU(units=3, return_sequences=True, reset_after=False)"),
    ("graph", "ConvLSTM2D(filters=2, kernel_size=2)"),
    ("graph", "GroupNormalization(groups=3)"),
    ("graph", "activations.softsign()"),
    ("xla", "Conv2D(filters=2, kernel_size=3)"),
    ("xla", "activations.softsign()"),
]


def assert_right_or_refused(form, mode="eager"):
    verdict = second_derivatives.judge(form, mode)
    if verdict.refused is None:
        assert verdict.right, f"relative error {verdict.error:.1e}"
    else:
        assert verdict.refused == form.refused


@pytest.mark.parametrize(
    "form", thorough_but(QUICK, JUDGED), ids=lambda form: form.title
)
def test_gradient_follows_central_differences_or_is_refused(form):
    assert_right_or_refused(form)


@pytest.mark.parametrize(
    ("mode", "title"), thorough_but(QUICK_COMPILED, COMPILED)
)
def test_gradient_in_graphs_follows_central_differences(mode, title):
    assert_right_or_refused(BY_TITLE[title], mode)


def test_new_layers_are_judged():
    for form in layer_forms.new_layers(keras.layers):
        verdict = second_derivatives.judge(form)
        assert verdict.right or verdict.refused, form.title


# The judge notices


def form_of(function):
    return layer_forms.Form(
        "ours", "", (5, 4), lambda t: keras.layers.Lambda(function)(t)
    )


def frozen_mean(x):
    """As TensorFlow's moments: only the second derivative is wrong."""
    mean = tf.reduce_mean(x, -1, keepdims=True)
    variance = tf.reduce_mean(
        tf.square(x - tf.stop_gradient(mean)), -1, keepdims=True
    )
    return (x - mean) * tf.math.rsqrt(variance + 1e-3)


def test_judge_notices_a_mean_that_is_taken_for_a_constant():
    verdict = second_derivatives.judge(form_of(frozen_mean))
    assert verdict.refused is None
    assert verdict.error > 10 * second_derivatives.TOLERANCE


@pytest.mark.parametrize(
    "title", ["LayerNormalization()", "GroupNormalization(groups=3)"]
)
def test_judge_notices_tensorflows_own_moments(title, monkeypatch):
    monkeypatch.setattr(derivatives, "exact_moments", contextlib.nullcontext)
    monkeypatch.setattr(
        derivatives, "require_second_derivatives", lambda *_: None
    )
    verdict = second_derivatives.judge(BY_TITLE[title])
    assert verdict.error > 10 * second_derivatives.TOLERANCE


def test_judge_notices_a_gradient_that_is_left_out():
    def half(x):
        return x * (1 + tf.stop_gradient(tf.tanh(x)))

    verdict = second_derivatives.judge(form_of(half))
    assert not verdict.right


def test_judge_refuses_to_judge_a_network_that_hardly_depends_on_its_inputs():
    with pytest.raises(
        ValueError, match=r"^ours\(\): expected one of 10 .*: rho is"
    ):
        second_derivatives.judge(form_of(lambda x: 1e-12 * x))


def test_judge_notices_a_gradient_that_is_not_finite():
    @tf.custom_gradient
    def identity(x):
        def gradient(upstream):
            @tf.custom_gradient
            def pass_on(values):
                return tf.identity(values), lambda u: u * float("nan")

            return pass_on(upstream)

        return tf.identity(x), gradient

    assert not second_derivatives.judge(form_of(identity)).right


def test_errors_other_than_refusals_are_raised():
    def fail(x):
        if tf.executing_eagerly():  # past the wrapping
            raise ValueError("model: something else")
        return x

    with pytest.raises(ValueError, match="something else"):
        second_derivatives.judge(form_of(fail))


def test_judge_leaves_keras_settings_as_they_were():
    before = keras.config.floatx(), keras.config.dtype_policy().name
    with second_derivatives.float64():
        assert keras.layers.Dense(1).dtype_policy.name == "float64"
    assert before == ("float32", "float32")
    assert before == (keras.config.floatx(), keras.config.dtype_policy().name)


# The catalogue


def test_every_name_of_keras_is_in_one_place():
    formed = {form.name for form in FORMS}
    assert formed.isdisjoint(layer_forms.LEFT_OUT)
    assert len(BY_TITLE) == len(FORMS)
    activations = {
        f"activations.{name}" for name in layer_forms.public(keras.activations)
    }
    left_out = {f"activations.{n}" for n in layer_forms.ACTIVATIONS_LEFT_OUT}
    assert activations == left_out | {
        name for name in formed if name.startswith("activations.")
    }


class NewLayer(keras.layers.Layer):
    """A layer of images that Keras may have one day."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def call(self, x):
        if x.shape.rank != 4:
            raise ValueError("images only")
        return tf.sin(x)


class Mysterious(keras.layers.Layer):
    def __init__(self, mystery, **kwargs):
        super().__init__(**kwargs)


class OfNoShape(keras.layers.Layer):
    def call(self, x):
        raise ValueError("what is this?")


def test_new_layer_is_tried_with_guessed_settings():
    namespace = types.SimpleNamespace(New=NewLayer, Add=keras.layers.Add)
    (form,) = layer_forms.new_layers(namespace)
    assert form.title == "New(guessed: units=4)"
    assert form.shape == (6, 6, 3)
    assert second_derivatives.judge(form).right


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (Mysterious, "no value is known for its mystery"),
        (OfNoShape, "ValueError: .*what is this"),
        (len, "it is no layer"),
    ],
)
def test_new_layer_that_cannot_be_made_asks_for_a_form(new, reason):
    namespace = types.SimpleNamespace(New=new)
    with pytest.raises(
        ValueError,
        match=rf"(?s)^New: expected a layer.*; {reason}.*\. Add a form of it",
    ):
        layer_forms.new_layers(namespace)


# The command


def test_command_writes_the_table(tmp_path):
    done = program(
        "benchmarks/layers.py",
        "--only=LayerNormalization,tf.nn.dilation2d",
        f"--output_dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "layers.json").read_text())["rows"]
    assert rows["LayerNormalization()"]["error"] < 1e-5
    assert rows["tf.nn.dilation2d()"]["refused"] == "Dilation2D"
    table = (tmp_path / "layers.md").read_text()
    assert re.search(r"\| `LayerNormalization` +\| +`axis=1` \| ", table)
    assert "refused: Dilation2D" in table
    assert re.search(r"\| `Hashing` +\| +takes strings", table)


def test_committed_table_has_every_form_and_nothing_failed():
    results = json.loads((ROOT / "results/layers.json").read_text())
    if results["versions"]["keras"] == keras.__version__:
        assert set(results["rows"]) == set(BY_TITLE)
    table = (ROOT / "results/layers.md").read_text()
    for title, row in results["rows"].items():
        assert "failed" not in row, title
        assert f"`{row['layer']}`" in table


@pytest.fixture
def command():
    """The command, whose flags are undefined again afterwards."""
    with flagsaver.flagsaver():
        import layers as module

        flags.FLAGS(["layers.py"])
        yield module
        sys.modules.pop("layers")


def test_command_keeps_what_is_judged(command, tmp_path, capsys):
    path = tmp_path / "layers.json"
    row = {"layer": "Add", "form": "", "bound": 1e-5, "error": 3e-7}
    rows = {"Add()": row, "Dot()": {**row, "failed": "wrong"}}
    command.harness.save(path, "layers", {**rows, "ReLU()": {"bound": 1}})
    assert command.kept(path) == {"Add()": row}
    assert command.kept(tmp_path / "none.json") == {}
    flags.FLAGS.rerun = True
    assert command.kept(path) == {}


def test_table_says_what_failed(command):
    def fail(t):
        raise TypeError("what now?\nmore")

    form = layer_forms.Form("ours", "", (5, 4), fail)
    row = command.row_of(form)
    assert row["failed"] == "TypeError: what now?"
    assert command.cells(row)[-1] == "FAILED: TypeError: what now?"
    row = command.row_of(form_of(frozen_mean))
    assert row["failed"] == "wrong"


def test_command_names_what_it_does_not_know(tmp_path):
    done = program(
        "benchmarks/layers.py", "--only=Dens", f"--output_dir={tmp_path}"
    )
    assert done.returncode != 0
    assert "flag --only: expected names" in done.stdout + done.stderr
