"""Imports TensorFlow without its start-up notes, which tell nothing of a run.

It prints most of them before it looks at its own log level: on the processor,
and on the GPUs that are not there. All else that comes meanwhile is printed.
With TF_CPP_MIN_LOG_LEVEL=0 in the environment, nothing is left out.
"""

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# Of Abseil: I for information, W, E; date and time; and where it comes from.
_NOTES = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|[IWE]\d{4} .*\b(port|cudart_stub|cuda_platform|cuda_diagnostics"
    rb"|cpu_feature_guard|cuda_dnn|cuda_fft|cuda_blas|computation_placer)\.cc"
)

# DeepFool's gradient is not saved with a model, which is served, not trained;
# and a program that trains several models makes the graphs of each.
_EXPECTED = re.compile("unsaved custom gradients|triggered tf.function retrac")


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Leaves TensorFlow's notes out of what this process writes to stderr."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            kept.seek(0)
            for line in kept:
                if not _NOTES.match(line):
                    os.write(2, line)


@contextlib.contextmanager
def expected() -> Iterator[None]:
    """Leaves out what TensorFlow warns of, and is as it should be here."""
    loggers = [logging.getLogger(name) for name in ("absl", "tensorflow")]
    for logger in loggers:
        logger.addFilter(_is_news)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_news)


def _is_news(record):
    return not _EXPECTED.search(record.getMessage())


os.environ.setdefault(_LEVEL, "2")
if os.environ[_LEVEL] >= "2":
    with _without_notes():
        import tensorflow as tf

        tf.config.list_physical_devices("GPU")
