"""Any Keras classifier as a SavedModel for TensorFlow Serving.

    python apps/export.py --model=FILE.keras --dataset=mnist --export_dir=MODELS
    python apps/export.py --model=FILE.keras --dataset=none --preprocessing=none

Measures the classifier on the data set's test images, and writes
EXPORT_DIR/NAME/VERSION/: preprocessing and network, with signatures for raw
and encoded images and for their distance to the decision boundary, warm-up
requests and a model card (assets.extra/model_card.md). Beside it, models.config
and batching.config for the server, and some images to ask it about. LeNet on
MNIST takes about a minute on two CPU cores; with --metrics= some seconds.
"""

import json
import os
import time

from absl import app, flags

from shared import cli, inputs, serving
from shared.evaluation import evaluate_split
from shared.flags import define_classifier_flags
from shared.provenance import provenance

import dd_keras
from dd_keras import attacks
from dd_keras.defenses import METHODS
from dd_keras.evaluation import metrics

FLAGS = flags.FLAGS

_NO_DATASET = "none"


def _is_name_of_a_model(name):
    """Whether --name may be one, as a validator of flags tells it."""
    try:
        return name is None or dd_keras.serving.validate_name(name)
    except ValueError as error:
        raise flags.ValidationError(str(error)) from error


_ATTACKS = {
    "deepfool": lambda: attacks.DeepFool(
        max_iter=FLAGS.max_iter, candidates=FLAGS.candidates
    ),
    "super_deepfool": lambda: attacks.SuperDeepFool(
        candidates=FLAGS.candidates
    ),
    "ddn": attacks.DDN,
    "fab": lambda: attacks.FAB(2),
}

define_classifier_flags()
flags.DEFINE_string(
    "model", None, "The classifier, a .keras file.", required=True
)
flags.DEFINE_string(
    "export_dir", "savedmodels", "Directory of all models of a server."
)
flags.register_validator(
    "export_dir", bool, message="--export_dir must not be empty."
)
flags.DEFINE_string(
    "name", None, "Of the model in the server; that of the file by default."
)
flags.register_validator("name", _is_name_of_a_model)
flags.DEFINE_integer(
    "version", None, "Its version; the next one by default.", lower_bound=1
)
flags.DEFINE_list(
    "metrics",
    ["accuracy", "rho2", "fgsm"],
    "What the model card tells, see apps/evaluate.py; none: nothing.",
)
flags.DEFINE_enum(
    "defense",
    None,
    list(METHODS),
    "What made it robust, for the card; none by default.",
)
flags.DEFINE_string(
    "results",
    None,
    "The results.json of the app that trained it: the card tells its settings.",
)
flags.DEFINE_enum(
    "image_dtype", "float32", ["float32", "uint8"], "Of raw images."
)
flags.DEFINE_integer(
    "max_images", 64, "Most encoded images of a request.", lower_bound=1
)
flags.DEFINE_integer(
    "max_pixels", 2**24, "Most pixels of an encoded image.", lower_bound=1
)
flags.DEFINE_integer(
    "max_request_pixels",
    None,
    "Most pixels of all encoded images of a request; four times --max_pixels "
    "by default.",
    lower_bound=1,
)
flags.DEFINE_enum(
    "robustness_attack",
    "deepfool",
    list(_ATTACKS),
    "Behind `robustness`. DeepFool is fast, and its distances are the longest: "
    "on a defended LeNet by 14 %; ddn finds the shortest, in 300 steps.",
)
flags.DEFINE_integer(
    "max_iter", 50, "DeepFool iterations of `robustness`.", lower_bound=1
)
flags.DEFINE_integer(
    "candidates",
    None,
    "Most probable classes that it considers; all by default.",
    lower_bound=1,
)
flags.DEFINE_bool(
    "warm_up",
    None,
    "Write warm-up requests; by default if tensorflow-serving-api is there.",
)


@cli.main
def main():
    """Exports a classifier, from flags to files."""
    started = time.time()
    cli.writable_directory(FLAGS.export_dir, "export_dir")
    name = _name()
    training = _training_flags()
    classifier = inputs.load_classifier(FLAGS.model, None, FLAGS.activation)
    data, options = None, {}
    if FLAGS.dataset != _NO_DATASET:
        data = inputs.load_evaluation_data()
        inputs.check_fits(FLAGS.model, classifier, data)
        data = classifier.data(data)
    elif FLAGS.preprocessing not in ("dataset", "none"):
        options["preprocessing"] = inputs.load_model(FLAGS.preprocessing)
    report = None
    if data is not None and FLAGS.metrics:
        chosen = [metrics.get(name, data.bounds) for name in FLAGS.metrics]
        report = evaluate_split(classifier, data, chosen, None)
        print(report.table())
    version = serving.export(
        classifier,
        data,
        FLAGS.export_dir,
        name,
        version=FLAGS.version,
        image_dtype=FLAGS.image_dtype,
        max_images=FLAGS.max_images,
        max_pixels=FLAGS.max_pixels,
        max_request_pixels=FLAGS.max_request_pixels,
        attack=_ATTACKS[FLAGS.robustness_attack](),
        warm_up_requests=FLAGS.warm_up,
        report=report,
        card={
            "name": name,
            "dataset": None if data is None else FLAGS.dataset,
            "defense": FLAGS.defense
            and METHODS[FLAGS.defense].describe(training or {}),
            "training": training,
            "made_by": provenance()["command"],
        },
        **options,
    )
    written = serving.write_server_files(
        data, FLAGS.export_dir, {name: classifier}
    )
    cli.print_written([version, *written], started)


def _name():
    """The name of the model in the server."""
    stem = os.path.splitext(os.path.basename(FLAGS.model))[0]
    try:
        return dd_keras.serving.validate_name(FLAGS.name or stem)
    except ValueError as error:
        cli.fail(f"--name: that of the file, as none is given: {error}")


def _training_flags():
    """The flags in --results; None without."""
    if FLAGS.results is None:
        return None
    try:
        with open(FLAGS.results, encoding="utf-8") as file:
            return dict(json.load(file)["flags"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        cli.fail(
            "--results: expected the results.json of an app that trains; "
            f"received {FLAGS.results}: {type(error).__name__}: {error}"
        )


if __name__ == "__main__":
    app.run(main)
