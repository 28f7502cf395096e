"""Runs an app that is killed, as by `kill -9`, in the middle of something.

    python tests/killed_app.py WHERE COUNT APP ARGUMENTS...

WHERE names what is going on at its COUNT-th time: "step", "validation",
"half a checkpoint", "checkpoint" (written, not yet in place), "model"
(half a .keras file), "evaluation", "figure", "export", "results"; "seconds":
after so many of them, whatever goes on.
"""

import os
import pathlib
import signal
import sys
import threading

import keras
import numpy as np
import tensorflow as tf
from absl import app

from dd_keras import plots
from dd_keras.evaluation import checkpoint
from dd_keras.utils import files


def kill():
    """Ends this process as nothing can prevent."""
    os.kill(os.getpid(), signal.SIGKILL)


class Killer:
    """Kills at the n-th call."""

    def __init__(self, count):
        self.left = count

    def __call__(self, then=kill):
        self.left -= 1
        if self.left == 0:
            then()


def before(owner, name, killer):
    """Lets a function be killed as it begins."""
    original = getattr(owner, name)

    def replaced(*arguments, **options):
        killer()
        return original(*arguments, **options)

    setattr(owner, name, replaced)


def half_written(owner, name, killer):
    """Lets a function that writes a file be killed when half is written."""
    original = getattr(owner, name)

    def replaced(file, *arguments, **options):
        original(file, *arguments, **options)

        def halve():
            path = getattr(file, "name", file)
            data = pathlib.Path(path).read_bytes()
            pathlib.Path(path).write_bytes(data[: len(data) // 2])
            kill()

        killer(halve)

    setattr(owner, name, replaced)


def prepare(where, count):
    """Arranges for the end."""
    if where == "seconds":
        threading.Timer(count, kill).start()
        return
    killer = Killer(int(count))
    callback = keras.callbacks.Callback
    if where == "step":
        before(callback, "on_train_batch_end", killer)
    elif where == "validation":
        before(callback, "on_test_batch_end", killer)
    elif where == "half a checkpoint":
        half_written(np, "savez", killer)
    elif where == "checkpoint":
        original = os.replace

        def replace(source, target):
            if str(target).endswith(".npz"):
                killer()
            original(source, target)

        os.replace = replace
    elif where == "model":
        original_save = keras.Model.save

        def save(self, path, *arguments, **options):
            original_save(self, path, *arguments, **options)
            killer(lambda: (os.truncate(path, 100), kill()))

        keras.Model.save = save
    elif where == "evaluation":
        before(checkpoint.Checkpoint, "add", killer)
    elif where == "figure":
        before(plots, "adversarial_images", killer)
    elif where == "export":
        before(files, "place", killer)
    elif where == "saving":
        before(tf.saved_model, "save", killer)
    elif where == "results":
        before(files, "write_text", killer)
    else:
        raise ValueError(where)


if __name__ == "__main__":
    _, where, count, path, *arguments = sys.argv
    sys.path.insert(0, str(pathlib.Path(path).parent.resolve()))
    sys.argv = [path, *arguments]
    prepare(where, float(count))
    name = pathlib.Path(path).stem
    app.run(__import__(name).main)
