"""The layers and activations of Keras, in forms that a classifier has them.

A form is a layer with its settings, between two dense layers; see
`second_derivatives.judge` for what is asked of it. What Keras has and this
catalogue does not is tried with guessed settings, see `guessed`.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import keras
from layer_forms_of_one import SETTINGS
from layer_forms_of_operations import OPERATIONS
from layer_forms_of_several import NETS, PARTS

# Shapes of one sample, in the order in which they are tried on a new layer.
SHAPES = {
    "vector": (6,),
    "sequence": (5, 4),
    "image": (6, 6, 3),
    "volume": (4, 4, 4, 2),
    "cube": (2, 2, 2, 4),
    "clip": (3, 4, 4, 2),
    "long clip": (2, 3, 3, 3, 2),
    "wave": (40,),
    "signal": (40, 1),
    "picture": (32, 32, 3),
}


class Form(NamedTuple):
    """A layer to judge.

    Attributes:
        name: the layer's, as in `keras.layers`, or that of an operation.
        settings: what sets this form apart, for the reader.
        shape: of one sample of what it takes.
        build: a function from a symbolic (B, *shape) to the layer's output;
            makes the layer anew each time.
        rounds: the reason why the layer computes in float32 whatever it is
            given, None where it does not.
        refused: the operation for which it may be refused, None where it must
            be right.
    """

    name: str
    settings: str
    shape: tuple
    build: Callable
    rounds: str | None = None
    refused: str | None = None

    @property
    def title(self):
        """The form's name for tests and tables."""
        return f"{self.name}({self.settings})"


# Not for classifiers, or not for this judge.
_ABSTRACT = "abstract: nothing to compute"
_TEXT = "takes strings or integers: no gradient by its inputs"
_LOOKUP = "looks its values up, piecewise constant: no gradient by its inputs"
_OTHER = "runs another framework's module, whose derivatives are its own"
_FUNCTION = "a function that makes the layer of this name"
LEFT_OUT = {
    "CategoryEncoding": _TEXT,
    "ContrastLimitedAdaptiveHistogramEqualization": _LOOKUP,
    "Discretization": _TEXT,
    "Embedding": _TEXT,
    "Equalization": _LOOKUP,
    "FlaxLayer": _OTHER,
    "HashedCrossing": _TEXT,
    "Hashing": _TEXT,
    "Input": "a function that makes the input",
    "InputLayer": "the input itself",
    "InputSpec": "no layer: the shape of an input",
    "IntegerLookup": _TEXT,
    "JaxLayer": _OTHER,
    "Layer": _ABSTRACT,
    "MaxNumBoundingBoxes": "takes bounding boxes, gives no tensor",
    "ReversibleEmbedding": _TEXT,
    "StringLookup": _TEXT,
    "TFSMLayer": "a SavedModel, which DeepFool refuses by an error of its own",
    "TextVectorization": _TEXT,
    "TorchModuleWrapper": _OTHER,
    "Wrapper": _ABSTRACT,
    "add": _FUNCTION,
    "average": _FUNCTION,
    "concatenate": _FUNCTION,
    "deserialize": "no layer: reads a configuration",
    "dot": _FUNCTION,
    "maximum": _FUNCTION,
    "minimum": _FUNCTION,
    "multiply": _FUNCTION,
    "serialize": "no layer: writes a configuration",
    "subtract": _FUNCTION,
}
ACTIVATIONS_LEFT_OUT = {
    "deserialize": "no activation: reads a configuration",
    "get": "no activation: finds one by name",
    "serialize": "no activation: writes a configuration",
}
# Settings beside the function itself; those without a line have none.
ACTIVATIONS = {
    "celu": [{}, {"alpha": 0.5}],
    "elu": [{}, {"alpha": 0.5}],
    "gelu": [{}, {"approximate": True}],
    "leaky_relu": [{}, {"negative_slope": 0.4}],
    "relu": [{}, {"negative_slope": 0.1, "max_value": 0.5, "threshold": 0.1}],
    "squareplus": [{}, {"b": 1}],
    "threshold": [{"threshold": 0.1, "default_value": 0.3}],
}
# What is passed for arguments that a new layer cannot do without.
GUESSES = {
    "activation": "tanh",
    "axes": -1,
    "axis": -1,
    "dilation_rate": 1,
    "dims": (2, 1),
    "factor": 0.3,
    "filters": 4,
    "groups": 1,
    "head_dim": 3,
    "height": 4,
    "height_factor": 0.3,
    "kernel_size": 2,
    "key_dim": 3,
    "n": 2,
    "num_heads": 2,
    "num_key_value_heads": 1,
    "num_query_heads": 2,
    "output_dim": 4,
    "output_size": 2,
    "pool_size": 2,
    "rate": 0.3,
    "scale": 0.5,
    "size": 2,
    "stddev": 0.3,
    "units": 4,
    "width": 4,
    "width_factor": 0.3,
}


def forms():
    """All forms that the installed Keras has, those of new layers included.

    Returns:
        list of `Form`.

    Raises:
        ValueError: if Keras has a layer or an activation that is not in the
            catalogue and that no guessed settings make; says what to do.
    """
    return [*listed(), *new_layers(keras.layers), *new_activations()]


def listed():
    """The forms of the catalogue, of those layers that Keras has."""
    found = []
    for name, (kind, *settings) in SETTINGS.items():
        cls = getattr(keras.layers, name, None)
        for one in settings:
            rounds = one.get("_rounds")
            chosen = {k: v for k, v in one.items() if k != "_rounds"}
            if cls is not None and _takes(cls, chosen):
                found.append(
                    Form(
                        name,
                        _text(chosen),
                        SHAPES[kind],
                        _made(cls, chosen),
                        rounds,
                    )
                )
    for name, kind, settings, build, *more in [*PARTS, *OPERATIONS, *NETS]:
        is_layer = "." not in name
        if not is_layer or hasattr(keras.layers, name):
            rounds, refused = (*more, None, None)[:2]
            found.append(
                Form(name, settings, SHAPES[kind], build, rounds, refused)
            )
    for name in sorted(set(public(keras.activations)) & set(ACTIVATIONS)):
        found += _activation_forms(name, ACTIVATIONS[name])
    return found


def new_activations():
    """A form of each activation that needs no settings to be one."""
    known = {*ACTIVATIONS, *ACTIVATIONS_LEFT_OUT}
    found = []
    for name in public(keras.activations):
        if name not in known:
            found += _activation_forms(name, [{}])
    return found


def new_layers(namespace):
    """A form, with guessed settings, of each layer that has none.

    Args:
        namespace: `keras.layers`, or something with its names.

    Returns:
        list of `Form`.

    Raises:
        ValueError: if no settings and shape were found; says what to do.
    """
    known = {
        id(getattr(namespace, form.name, None)) for form in listed()
    }  # other names of the same class are no other layers
    return [
        guessed(name, getattr(namespace, name))
        for name in public(namespace)
        if name not in LEFT_OUT and id(getattr(namespace, name)) not in known
    ]


def guessed(name, cls):
    """A form of a layer that nothing is known of.

    Args:
        name: of the layer.
        cls: the layer's class.

    Returns:
        `Form`.

    Raises:
        ValueError: as for `new_layers`.
    """
    reason = "it is no layer"
    if inspect.isclass(cls) and issubclass(cls, keras.layers.Layer):
        needed = [
            parameter.name
            for parameter in inspect.signature(cls).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        unknown = [key for key in needed if key not in GUESSES]
        reason = f"no value is known for its {', '.join(unknown)}"
        settings = {key: GUESSES[key] for key in needed if key in GUESSES}
        build = _made(cls, settings)
        for shape in SHAPES.values() if not unknown else ():
            try:
                build(keras.KerasTensor((None, *shape)))
            except Exception as error:  # whatever it is, it is another shape's
                reason = f"{type(error).__name__}: {error}"
            else:
                return Form(name, f"guessed: {_text(settings)}", shape, build)
    raise ValueError(
        f"{name}: expected a layer that guessed settings make; {reason}. Add "
        "a form of it to benchmarks/layer_forms_of_one.py, or the reason why "
        "it cannot stand in a classifier to LEFT_OUT in layer_forms.py."
    )


def public(module):
    """The public names of a module of Keras, its modules left out."""
    return [
        name
        for name in sorted(dir(module))
        if not name.startswith("_")
        and not inspect.ismodule(getattr(module, name))
    ]


def _activation_forms(name, settings):
    function = getattr(keras.activations, name)

    def build(chosen):
        # Where they bend and saturate.
        return lambda t: keras.layers.Lambda(
            lambda x: function(2.0 * x, **chosen)
        )(t)

    return [
        Form(f"activations.{name}", _text(one), SHAPES["vector"], build(one))
        for one in settings
    ]


def _made(cls, settings):
    return lambda t: cls(**settings)(t)


def _takes(cls, settings):
    """Whether a layer, as this version of Keras has it, has the settings."""
    known = inspect.signature(cls.__init__).parameters
    return all(key == "dtype" or key in known for key in settings)


def _text(settings):
    return ", ".join(f"{key}={value!r}" for key, value in settings.items())
