"""How every program starts and ends: usage errors, one-line errors, its files.

A program decorates its function with `main`, and hands that to `absl.app.run`.
"""

import contextlib
import functools
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from typing import NoReturn

import tensorflow as tf
from absl import app, flags, logging

from shared import quiet

from dd_keras import distribution
from dd_keras.utils import files

FLAGS = flags.FLAGS

# What is undone when the program ends: locks of directories, and callbacks.
_AT_END = contextlib.ExitStack()

# How lines of TensorFlow's errors begin that tell of its graph.
_GRAPH_LINES = ("Graph execution error", "Detected at node", "File ", "[[{{")


def main(run: Callable[[], None]) -> Callable[[list[str]], None]:
    """Makes `run()` what `app.run` takes.

    An argument that is no flag is a usage error; a bad input that `run`
    raises an error for, a full disk or Ctrl-C end the program with one line.
    """

    @functools.wraps(run)
    def checked(argv):
        if len(argv) > 1:
            raise app.UsageError(f"expected only flags; received {argv[1:]}.")
        # TFDS tells of every file it opens, TensorFlow of each signature.
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        try:
            with _AT_END, _short_warnings(), quiet.expected():
                run()
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            fail(error)
        except tf.errors.OpError as error:
            fail(f"{type(error).__name__}: {_message_of(error)}")
        except KeyboardInterrupt as interrupt:
            print(f"\n{str(interrupt) or 'Interrupted.'}", file=sys.stderr)
            number = getattr(interrupt, "signal", signal.SIGINT)
            raise SystemExit(128 + number) from None  # as shells have it

    return checked


@contextlib.contextmanager
def _short_warnings():
    """Prints warnings in a line each, without the code that they come from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def fail(message: object) -> NoReturn:
    """Ends the program with one line."""
    raise SystemExit(f"error: {message}")


def first_line(error: object) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), "")


def at_end(callback: Callable[[], None]) -> None:
    """Has a function called when the program ends, however it ends."""
    _AT_END.callback(callback)


def writable_directory(path: str, flag: str = "output_dir") -> str:
    """Makes the directory of a flag; fails where it cannot be written."""
    if not distribution.is_chief():
        return path
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        fail(f"--{flag}: expected a directory to write to; {error}.")
    return path


def own_directory(path: str) -> str:
    """Makes --output_dir, for this process alone until the program ends.

    Raises:
        SystemExit: with a message, if it cannot be written, or another
            process owns it.
    """
    writable_directory(path)
    if distribution.is_chief():
        try:
            _AT_END.enter_context(files.locked(path))
        except BlockingIOError:
            fail(
                f"--output_dir: {path} is in use by another run. Wait for it, "
                "or choose another."
            )
        except OSError as error:  # a link, or another user's
            fail(f"--output_dir: expected a directory to lock; {error}.")
    return path


def print_written(paths: Iterable[str], started: float) -> None:
    """Says which files there are, and how long it took.

    Args:
        paths: of the files.
        started: the `time.time()` of the start.
    """
    print("\nWritten:")
    for path in paths:
        print(f"  {path}")
    print(f"Done in {time.time() - started:.0f} s.")


def _message_of(error):
    """The line of an error of TensorFlow's that does not tell of its graph."""
    lines = [line.strip() for line in str(error.message).splitlines()]
    found = [
        line for line in lines if line and not line.startswith(_GRAPH_LINES)
    ]
    return found[0] if found else "no further message"
