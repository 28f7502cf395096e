"""A page to play with: draw an image, see how close another class is.

    python apps/playground.py
    python apps/playground.py --model=mine=savedmodels/mnist/mlp_deep_defense
    python apps/playground.py --model=a=A.keras --model=b=B.keras --port=8001

Draw, upload or choose an image. For each model, side by side: its class, the
probabilities, the distance to the decision boundary by DeepFool (rho and l2, as
the export's signature `robustness` has them), the class behind the boundary,
and the nearest adversarial image of valid pixels that --attack finds. Distances
are upper bounds: there may be nearer images.

Models are exports of dd_keras, or .keras files with --preprocessing; without
flags, the LeNets of savedmodels/. They run in this process. The server answers
this machine alone, and the page loads nothing from elsewhere. On two CPU cores
it is ready in half a minute, and answers in one to three seconds with ddn.
"""

import os
import pathlib
import threading
import webbrowser

from absl import app, flags

from shared import cli, inputs, local_server, probe

from dd_keras.serving import server_config

FLAGS = flags.FLAGS

_PAGE = pathlib.Path(__file__).parent / "playground_page"
_FILES = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/script.js": ("script.js", "text/javascript"),
}
_MOST_MODELS = 4  # side by side


def _named(models):
    """Name to path, of the values of --model; raises what flags expect."""
    pairs = [value.partition("=") for value in models]
    if not 1 <= len(pairs) <= _MOST_MODELS:
        raise flags.ValidationError(
            f"--model: expected 1 to {_MOST_MODELS} models; received "
            f"{len(pairs)}."
        )
    for (name, _, path), value in zip(pairs, models, strict=True):
        if not name or not path or not name.isprintable():
            raise flags.ValidationError(
                f"--model: expected NAME=PATH; received {value!r}."
            )
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise flags.ValidationError(
            f"--model: expected different names; received {models}."
        )
    return {name: path for name, _, path in pairs}


flags.DEFINE_multi_string(
    "model",
    [
        "reference=savedmodels/mnist/lenet_reference",
        "defended=savedmodels/mnist/lenet_deep_defense",
    ],
    "NAME=PATH: what the page calls it, and an export (the folder of a version "
    "or of the model, whose newest is taken) or a .keras file. One to four.",
)
flags.register_validator("model", _named)
flags.DEFINE_string(
    "preprocessing",
    "none",
    "Of .keras files: another .keras file, from pixels 0 to 255 to their "
    "inputs; 'none' hands over the pixels. Exports have their own.",
)
flags.DEFINE_list(
    "class_names", None, "Of all classes, in order; numbers by default."
)
flags.DEFINE_list(
    "samples",
    ["savedmodels/drawn/seven.png", "savedmodels/drawn/three.png"],
    "PNG or JPEG files to choose from; the first is shown at the start.",
)
flags.DEFINE_enum(
    "attack",
    "ddn",
    list(probe.ATTACKS),
    "What finds the adversarial image within valid pixels; deepfool and "
    "super_deepfool are quicker, and find longer perturbations.",
)
flags.DEFINE_integer(
    "port",
    8000,
    "Of this machine, 127.0.0.1; 0 for any free one.",
    lower_bound=0,
    upper_bound=65535,
)
flags.DEFINE_bool("open", False, "Open the page in the browser.")


@cli.main
def main():
    """Loads the models, and serves the page until it is interrupted."""
    with server() as serving:
        print(f"Open {serving.address} - Ctrl-C ends it.", flush=True)
        if FLAGS.open:
            webbrowser.open(serving.address)
        serving.serve_forever()


def server():
    """The server of the flags, which listens but does not answer yet."""
    probes = _probes()
    shape = probes[0].image_shape
    samples = _samples(shape)
    for one in probes:  # compiles; the first answer then is as quick as others
        one.ask(next(iter(samples.values()), probe.blank(shape)))
    config = {
        "shape": shape,
        "models": [one.name for one in probes],
        "samples": [
            {"name": name, "image": probe.data_uri(image)}
            for name, image in samples.items()
        ],
        "attack": probe.title(FLAGS.attack),
        "most_bytes": probe.MOST_UPLOADED,
    }
    one_at_a_time = threading.Lock()

    def ask(request):
        try:
            image = probe.image_of(request, shape)
        except ValueError as error:
            raise local_server.BadRequestError(str(error)) from error
        with one_at_a_time:
            answers = [one.ask(image) for one in probes]
        return {"image": probe.data_uri(image), "models": answers}

    pages = {
        path: (f"{media_type}; charset=utf-8", (_PAGE / name).read_bytes())
        for path, (name, media_type) in _FILES.items()
    }
    pages["/config"] = local_server.JSON, local_server.encoded(config)
    try:
        return local_server.Server(FLAGS.port, pages, {"/ask": ask})
    except OSError as error:
        cli.fail(f"--port: expected one that is free; {FLAGS.port}: {error}.")


def _probes():
    """The models of the flags, which take the same images."""
    preprocessing = None
    if FLAGS.preprocessing != "none":
        preprocessing = inputs.load_model(FLAGS.preprocessing)
    found = []
    for name, path in _named(FLAGS.model).items():
        classifier = inputs.load_classifier(_version(path), None)
        if classifier.preprocessing is None:
            classifier = classifier._replace(preprocessing=preprocessing)
        try:
            found.append(
                probe.Probe(name, classifier, FLAGS.class_names, FLAGS.attack)
            )
        except ValueError as error:
            cli.fail(f"--model: {path}: {error}")
        kind = (found[-1].image_shape, found[-1].num_classes)
        first = (found[0].image_shape, found[0].num_classes)
        if kind != first:
            cli.fail(
                f"--model: expected models of {first[0]} images into "
                f"{first[1]} classes, as the first is; received {path}, of "
                f"{kind[0]} into {kind[1]}."
            )
    return found


def _version(path):
    """The folder of the newest version, of that of a model."""
    if os.path.isfile(os.path.join(path, "saved_model.pb")):
        return path
    numbers = server_config.versions(path)
    return os.path.join(path, str(numbers[-1])) if numbers else path


def _samples(shape):
    """Name to image, of --samples."""
    found = {}
    for path in FLAGS.samples:
        try:
            image = probe.decoded(pathlib.Path(path).read_bytes(), shape)
        except (OSError, ValueError) as error:
            cli.fail(f"--samples: {path}: {error}")
        found[pathlib.Path(path).stem] = image
    return found


if __name__ == "__main__":
    app.run(main)
