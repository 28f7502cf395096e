"""Classifiers that others published, written small and in our own words.

Architectures as in the Keras code examples, the TensorFlow tutorials and a few
papers, of a few thousand weights and on inputs of 8 to 32 pixels. They are
what "any Keras classifier" is measured by: see `check`.
"""

from published import (
    attention,
    convolutions,
    ensembles,
    mixers,
    sequences,
    tabular,
    tutorials,
    volumes,
)
from published.registry import CLASSIFIERS, Published

__all__ = [
    "CLASSIFIERS",
    "Published",
    "attention",
    "convolutions",
    "ensembles",
    "mixers",
    "sequences",
    "tabular",
    "tutorials",
    "volumes",
]
