"""A Keras model around a classifier that looks like the classifier itself.

Its outputs, layers, preprocessor and export are the classifier's own, so that
tools which inspect the layers of a network work on the wrapper, too.
"""

from typing import Any

import keras


class ClassifierWrapper(keras.Model):
    """A classifier, and its logits, inside of another model.

    Args:
        model: a built Keras classifier, see `logits_model`.
        network: its `logits_model`.
        activation: what `model` ends in, see `logits_model`.

    Attributes:
        model: the classifier.
        activation: what it ends in.
    """

    def __init__(
        self,
        model: keras.Model,
        network: keras.Model,
        activation: str,
        **kwargs: Any,
    ):
        kwargs.setdefault("dtype", model.dtype_policy)
        super().__init__(**kwargs)
        self.model = model
        self.activation = activation
        # In a closure: Keras would take an attribute for a second sublayer.
        self._network = lambda: network

    def logits_model(self) -> keras.Model:
        """The classifier up to its logits, see `dd_keras.logits_model`."""
        return self._network()

    @property
    def input(self) -> keras.KerasTensor:
        """The classifier's own."""
        return self.model.input

    @property
    def output(self) -> keras.KerasTensor:
        """The classifier's own."""
        return self.model.output

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        """The classifier's own."""
        return self.model.inputs

    @property
    def outputs(self) -> list[keras.KerasTensor]:
        """The classifier's own."""
        return self.model.outputs

    @property
    def preprocessor(self) -> keras.Layer | None:
        """The classifier's own, of a KerasHub task; else None."""
        return getattr(self.model, "preprocessor", None)

    def preprocess_samples(
        self,
        x: object,
        y: object = None,
        sample_weight: object = None,
    ) -> tuple:
        """A batch as the classifier's own preprocessor makes it."""
        return self.model.preprocess_samples(x, y, sample_weight)

    def get_layer(
        self, name: str | None = None, index: int | None = None
    ) -> keras.Layer:
        """The classifier's layer of this name or index."""
        return self.model.get_layer(name, index)

    def export(self, *args: Any, **kwargs: Any) -> None:
        """Writes the classifier as `keras.Model.export` does.

        See `dd_keras.export` for what a server needs besides.
        """
        self.model.export(*args, **kwargs)
