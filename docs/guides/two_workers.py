# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # Two workers, a kill, and how training resumes
#
# Two processes train one classifier together, as two machines would. One of
# them is killed in the middle; the same command resumes. About two minutes on
# two cores.
#
# ## The training script
#
# Four things differ from a script for one machine:
#
# 1. The strategy is made before TensorFlow computes anything.
# 2. The model is built and compiled in its scope.
# 3. `resumable_fit` in place of `fit`: it checkpoints, and resumes.
# 4. Only the first worker, the chief, writes results.

# %%
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

SCRIPT = """
import sys

import keras
from sklearn.datasets import load_digits

import dd_keras
from dd_keras import distribution

strategy = distribution.strategy("multi_worker")
folder = sys.argv[1]
keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
with strategy.scope():
    classifier = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    model = dd_keras.DeepDefenseModel(classifier, lam=5.0, c=2.0)
    model.compile(
        "adam", "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
dd_keras.resumable_fit(
    model,
    (images, labels),
    epochs=12,
    checkpoint_dir=f"{folder}/checkpoints",
    batch_size=100,
    log=f"{folder}/log.csv",
    verbose=2,
)
if distribution.worker_index() == 0:
    classifier.save(f"{folder}/classifier.keras")
"""
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "train.py").write_text(SCRIPT)

# %% [markdown]
# ## Start two workers
#
# `TF_CONFIG` tells each worker where all of them are, and which one it is. On
# two machines, set it by hand; under Slurm, `srun` is enough. Here both run on
# this machine.


# %%
def free_port():
    """A port of this machine that nobody listens to."""
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start():
    """Two processes with the same command."""
    workers = [f"localhost:{free_port()}" for _ in range(2)]
    return [
        subprocess.Popen(
            [sys.executable, "train.py", str(folder)],
            cwd=folder,
            stdout=(folder / f"worker{index}.txt").open("a"),
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "CUDA_VISIBLE_DEVICES": "-1",
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "TF_CONFIG": json.dumps(
                    {
                        "cluster": {"worker": workers},
                        "task": {"type": "worker", "index": index},
                    }
                ),
            },
        )
        for index in range(2)
    ]


def epochs_logged():
    """How many epochs the log has."""
    log = folder / "log.csv"
    return len(log.read_text().splitlines()) - 1 if log.exists() else 0


def wait_for(condition, processes, seconds=120):
    """Waits until something holds, or a process has failed."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "took too long"
        assert not any(process.poll() for process in processes)
        time.sleep(0.05)


workers = start()
wait_for(lambda: epochs_logged() >= 3, workers)

# %% [markdown]
# ## Kill one
#
# `SIGKILL` is what happens when a machine is preempted or out of memory: no
# goodbye. The other worker notices, and ends with one line that says so.

# %%
workers[1].send_signal(signal.SIGKILL)
print("killed after", epochs_logged(), "epochs")
for worker in workers:
    worker.wait(timeout=120)
print("exit statuses:", [worker.returncode for worker in workers])
print((folder / "worker0.txt").read_text().splitlines()[-1])

# %% [markdown]
# ## Start both again
#
# The same command. Training resumes with the newest whole checkpoint.

# %%
before = epochs_logged()
workers = start()
for worker in workers:
    assert worker.wait(timeout=120) == 0
print("epochs before and after:", before, epochs_logged())
print((folder / "log.csv").read_text())

# %% [markdown]
# The log has every epoch once.
#
# ## What to try next
#
# - `dd_keras.distribution.strategy("mirrored")`, for several GPUs of one
#   machine.
# - The programs do all of this:
#   `python apps/digits.py --distribution=multi_worker --output_dir=SHARED`.
# - What is saved when:
#   [Resume what was interrupted](../how_to/interruptions.md).
# - What several devices compute:
#   [Use several GPUs or machines](../how_to/several_devices.md).
