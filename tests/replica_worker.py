"""One process of a training on several devices or machines, for tests.

    python tests/replica_worker.py JSON

JSON: strategy (see `distribution.strategy`), its replicas, patched (False:
Keras as it is), output (npz of the weights and logs), epochs, checkpoint_dir,
sleep (seconds a step), chief_has (values to hand to all workers).
"""

import json
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import dd_keras
from dd_keras import datasets, distribution
from dd_keras.utils import keras_internals

IMAGES, BATCH = 106, 31  # the last batch has 13: shares that differ


class Slowly(keras.callbacks.Callback):
    """Takes its time, and says that it is training."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def on_train_batch_end(self, batch, logs=None):
        print("step", batch, flush=True)
        time.sleep(self.seconds)


def model():
    """A small network with a bit of everything, in float64."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(0.02),
            layers.Conv2D(4, 3),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(
                16, "tanh", kernel_regularizer=keras.regularizers.L2(1e-2)
            ),
            layers.Dense(10),
        ]
    )
    attack = dd_keras.attacks.DeepFool(max_iter=3, candidates=2)
    defended = dd_keras.DeepDefenseModel(
        network, lam=2.0, c=5.0, attack=attack, evaluation_attack=attack
    )
    defended.compile(
        dd_keras.CoupledSGD(2e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return defended


def main(
    strategy="none",
    replicas=None,
    patched=True,
    output=None,
    epochs=2,
    checkpoint_dir=None,
    sleep=0.0,
    chief_has=None,
):
    """Trains as the JSON says."""
    if not patched:
        keras_internals.patch_multi_worker_fit = lambda: None
    scope = distribution.strategy(strategy, replicas=replicas)
    data = datasets.load("digits").limited(IMAGES)
    test = datasets.batches(data.test, data.preprocessing, BATCH)
    with scope.scope():
        if chief_has is not None:
            for value in chief_has:
                mine = value if distribution.is_chief() else "mine"
                print("received", json.dumps(distribution.from_chief(mine)))
            return
        trained = model()
    if checkpoint_dir is None:
        train = datasets.batches(data.train, data.preprocessing, BATCH)
        history = trained.fit(
            train, epochs=epochs, validation_data=test, verbose=0, shuffle=False
        )
    else:
        history = dd_keras.resumable_fit(
            trained,
            datasets.ResumableBatches.of(data, BATCH, 1),
            epochs,
            checkpoint_dir,
            checkpoint_steps=2,
            validation_data=test,
            callbacks=[Slowly(sleep)],
            verbose=0,
        )
    logs = {f"log/{key}": values for key, values in history.history.items()}
    weights = [
        tf.convert_to_tensor(weight.value).numpy() for weight in trained.weights
    ]
    np.savez(output, **{str(i): w for i, w in enumerate(weights)}, **logs)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
