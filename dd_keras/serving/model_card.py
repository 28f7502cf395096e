"""The model card of an export: what it is, how good, and its limits.

After Mitchell et al., "Model Cards for Model Reporting" (FAT* 2019).
"""

import contextlib
import datetime
import hashlib
import html
import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dd_keras.attacks import Attack
from dd_keras.serving import card_figures
from dd_keras.serving.endpoints import Endpoint
from dd_keras.utils import files, tables, text
from dd_keras.version import __version__

NAME = "model_card"  # .json, .md and .html, and what its figures begin with

_INTENDED_USE = (
    "Classification of images like those of the data set it was trained on, "
    "where inputs may be perturbed a little, by accident or on purpose. "
    "`robustness` flags inputs that lie close to a decision boundary, for "
    "instance to hand them to a human."
)
_LIMITS = (
    "Nothing is certified: a perturbation that is large enough still changes "
    "the decision, and so may attacks of other kinds (patches, rotations).",
    "Every image gets one of the classes, also one that shows none of them.",
    "Distances are those that an attack found. There may be shorter ones, and "
    "they are those of the network's inputs, behind the preprocessing.",
)
_LEGEND = (
    "rho2: mean length of the perturbations that DeepFool finds, each over the "
    "norm of its input; l2: their mean length. fgsm_accuracy@eps: accuracy "
    "under the fast gradient sign method. Lengths and eps are in units of the "
    "network's inputs."
)
_SECTIONS = {
    *("name", "dataset", "defense", "evaluation", "signatures"),
    *("robustness_attack", "architecture", "weights_sha256", "intended_use"),
    *("limits", "versions", "date"),
}
# What get_config of a Keras model holds that is no setting of a defence.
_NO_SETTING = {
    *("name", "trainable", "dtype", "model", "activation"),
    "evaluation_attack",
}


def describe(
    model: keras.Model,
    network: keras.Model,
    endpoints: dict[str, Endpoint],
    attack: Attack,
    report: Any,
    card: dict | None,
) -> dict:
    """All that a card says.

    Args:
        model: what the user exports, maybe a defence's wrapper.
        network: its network, which gives logits.
        endpoints: dict of name to `Endpoint`.
        attack: the one behind `robustness`.
        report: a `RobustnessReport`, or None.
        card: dict of the user's own entries, which replace those found here.

    Returns:
        dict that JSON can hold.

    Raises:
        ValueError: if `card` is no dict, or holds what JSON cannot.
    """
    found = {
        "name": network.name,
        "dataset": None,
        "defense": _defense(model),
        "evaluation": report
        and {
            "numbers": report.summary(),
            "intervals_95": report.intervals(),
            "warnings": list(report.warnings),
            "table": report.table("markdown"),
        },
        "signatures": {
            name: {
                "inputs": _specs([endpoint.spec]),
                "outputs": _specs(_outputs(endpoint)),
            }
            for name, endpoint in endpoints.items()
        },
        "robustness_attack": repr(attack),
        "architecture": _architecture(network),
        "weights_sha256": weights_hash(network),
        "intended_use": _INTENDED_USE,
        "limits": list(_LIMITS),
        "versions": {
            "dd_keras": __version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "python": platform.python_version(),
        },
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    try:
        found.update(card or {})
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "card: expected a dict of what JSON can hold; received "
            f"{card!r}: {error}"
        ) from error
    return found


def write(
    card: dict,
    directory: str,
    report: Any = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes a card as model_card.json and model_card.md.

    With a report also its figures, model_card_*.png, if matplotlib is
    installed, and as a page, model_card.html, if Jinja2 is, too.

    Args:
        card: what `describe` returned.
        directory: where; made if it is missing.
        report: the `RobustnessReport` of the card, or None.
        class_names: of all classes, in their order; None: their numbers.
    """
    files.write_text(
        json.dumps(card, indent=2) + "\n",
        os.path.join(directory, f"{NAME}.json"),
    )
    figures = {}
    if report is not None:
        figures = card_figures.draw(report, directory, NAME, class_names)
        with contextlib.suppress(ImportError):  # Jinja2 or matplotlib
            page = f"{NAME}.html"
            report.to_html(
                os.path.join(directory, page),
                title=str(card["name"]),
                class_names=class_names,
                about=_about(card),
                provenance=_provenance(card),
                note="A model card has no images.",
            )
            figures[page] = "This card as a page, with all figures"
    files.write_text(
        markdown(card, figures), os.path.join(directory, f"{NAME}.md")
    )


def weights_hash(model: keras.Model) -> str:
    """A hash that identifies a model by its weights.

    Args:
        model: a built Keras model. A classifier and its `logits_model` have
            the same hash.

    Returns:
        str: SHA-256, in hexadecimal, of all weights in the model's order: the
        dtype, the shape and the values, little-endian, of each.

    Example:
        >>> digest = dd_keras.serving.weights_hash(classifier)
        >>> len(digest)
        64
        >>> network = dd_keras.logits_model(classifier)
        >>> dd_keras.serving.weights_hash(network) == digest
        True
    """
    digest = hashlib.sha256()
    for weight in model.weights:
        values = np.asarray(weight)
        digest.update(f"{values.dtype.name}{values.shape}".encode())
        digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def markdown(card: dict, figures: Mapping[str, str] | None = None) -> str:
    """A card as a page for humans.

    Names and values are shown as they are; `intended_use` and `limits` may be
    Markdown, without HTML.

    Args:
        card: what `describe` returned.
        figures: dict from the names of files beside it to titles: pictures
            (.png) are shown, others are linked to.
    """
    facts = {
        "Data set": card["dataset"],
        "Defence": card["defense"],
        "Parameters": f"{card['architecture']['parameters']:,}",
        "SHA-256 of the weights": card["weights_sha256"],
        "Attack behind `robustness`": card["robustness_attack"],
        "Versions": card["versions"],
        "Date": card["date"],
    }
    facts = {name: _inline(value) for name, value in facts.items()}
    evaluation = card["evaluation"]
    measured = evaluation and f"{evaluation['table']}\n\n{_LEGEND}"
    layers = [
        (text.markdown(layer["name"]), layer["type"],
         str(layer["output_shape"]), f"{layer['parameters']:,}")
        for layer in card["architecture"]["layers"]
    ]  # fmt: skip
    signatures = {
        f"`{name}`": " to ".join(
            _tensors(specs[side]) for side in ("inputs", "outputs")
        )
        for name, specs in card["signatures"].items()
    }
    sections = [
        f"# {text.markdown(card['name'])}",
        _bullets(facts),
        "## Evaluation",
        measured or "Not measured.",
        *(_shown(file, title) for file, title in (figures or {}).items()),
        "## Intended use",
        _paragraphs(card["intended_use"]),
        "## Limits",
        _paragraphs(card["limits"]),
        "## Signatures",
        _bullets(signatures),
        "## Architecture",
        tables.render(
            ("layer", "type", "output", "parameters"), layers, "markdown"
        ),
    ]
    more = {
        text.markdown(name): _inline(value)
        for name, value in card.items()
        if name not in _SECTIONS
    }
    if more:
        sections += ["## More", _bullets(more)]
    return "\n\n".join(sections) + "\n"


def _shown(file, title):
    """A picture, or a link to another file."""
    return f"{'!' * file.endswith('.png')}[{text.markdown(title)}]({file})"


def _about(card):
    """What the page of a card tells of the model."""
    return {
        "intended use": _sentences(card["intended_use"]),
        "limits": _sentences(card["limits"]),
        "data set": card["dataset"],
        "defence": card["defense"],
        "parameters": f"{card['architecture']['parameters']:,}",
        "layers": ", ".join(
            f"{layer['name']} ({layer['type']})"
            for layer in card["architecture"]["layers"]
        ),
        "attack behind robustness": card["robustness_attack"],
        "signatures": ", ".join(card["signatures"]),
    }


def _provenance(card):
    """How the model was made; long settings are folded away."""
    more = {k: v for k, v in card.items() if k not in _SECTIONS}
    return {
        "weights, SHA-256": card["weights_sha256"],
        "versions": card["versions"],
        "date": card["date"],
        **{k: v for k, v in more.items() if not isinstance(v, dict)},
        "settings": {k: v for k, v in more.items() if isinstance(v, dict)},
    }


def _sentences(value):
    return value if isinstance(value, str) else " ".join(map(str, value))


def _defense(model):
    """The defence and its settings, where the model is one; else None."""
    if not callable(getattr(model, "logits_model", None)):
        return None
    settings = {
        # Of serialised objects their repr, which is shorter.
        key: repr(getattr(model, key)) if isinstance(value, dict) else value
        for key, value in model.get_config().items()
        if key not in _NO_SETTING
    }
    return {"name": type(model).__name__, **settings}


def _architecture(network):
    layers = getattr(network, "layers", [])
    return {
        "name": network.name,
        "parameters": network.count_params(),
        "layers": [
            {
                "name": layer.name,
                "type": type(layer).__name__,
                "output_shape": _output_shape(layer),
                "parameters": layer.count_params(),
            }
            for layer in layers
        ],
    }


def _output_shape(layer):
    """List of sizes; None where there is not one known output."""
    shape = getattr(getattr(layer, "output", None), "shape", None)
    return None if shape is None else list(shape)


def _outputs(endpoint):
    return [
        tf.TensorSpec(tensor.shape, tensor.dtype, name)
        for name, tensor in endpoint.function.structured_outputs.items()
    ]


def _specs(specs):
    return {
        spec.name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
        for spec in specs
    }


def _tensors(specs):
    """Names, dtypes and shapes in one line."""
    return ", ".join(
        f"{name}: {spec['dtype']} {tuple(spec['shape'])}".replace("None", "B")
        for name, spec in specs.items()
    )


def _bullets(facts):
    return "\n".join(f"- **{name}**: {fact}" for name, fact in facts.items())


def _inline(value):
    """A value of the card in one line of Markdown, which shows it as it is."""
    if value is None:
        return "not stated"
    if isinstance(value, dict):
        name = value.get("name")
        rest = ", ".join(f"{k} {v}" for k, v in value.items() if k != "name")
        value = rest if name is None else f"{name} ({rest})"
    return text.markdown(value)


def _paragraphs(value):
    paragraphs = [value] if isinstance(value, str) else map(str, value)
    return html.escape("\n\n".join(paragraphs), quote=False)
