# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # Serve a classifier, and flag fragile inputs
#
# A SavedModel that answers two questions about an image: which class, and how
# little would change this answer. A server can then pass doubtful images on to
# a human. About a minute on two cores, with scikit-learn's digits.

# %%
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import dd_keras
from dd_keras import attacks

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32")
x, x_test, y, y_test = train_test_split(images, labels, random_state=0)

classifier = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Rescaling(1 / 16),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10),
    ]
)
classifier.compile(
    "adam",
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
classifier.fit(x, y, epochs=30, verbose=0)

model = dd_keras.DeepDefenseModel(classifier, c="auto")
model.compile(dd_keras.CoupledSGD(1e-2), "sparse_categorical_crossentropy")
model.fit(x, y, epochs=10, verbose=0)

# %% [markdown]
# ## Export
#
# One version is one folder, written atomically; the next call writes version 2.
# With it come warm-up requests and a model card, which has the numbers of the
# report.

# %%
report = dd_keras.evaluate_robustness(
    classifier, x_test, y_test, metrics=["accuracy", "rho2"], verbose=0
)
folder = pathlib.Path(tempfile.mkdtemp()) / "digits"
path = dd_keras.export(
    classifier,
    folder,
    class_names=[str(digit) for digit in range(10)],
    report=report,
)
for file in sorted(pathlib.Path(path).rglob("*")):
    if file.is_file():
        print(file.relative_to(folder))

# %% [markdown]
# TensorFlow Serving takes this folder as it is:
#
#     docker run --rm -p 8501:8501 -v "FOLDER:/models/digits" \
#         -e MODEL_NAME=digits tensorflow/serving
#
# Here we ask the SavedModel itself, without a server. It needs TensorFlow only;
# dd_keras may be absent.

# %%
served = tf.saved_model.load(path)
print(sorted(served.signatures))
answer = served.signatures["serving_default"](images=tf.constant(x_test[:5]))
print(answer["labels"].numpy(), y_test[:5])

# %% [markdown]
# ## How fragile is this answer?
#
# `robustness` runs DeepFool inside the server. `rho` is the length of the
# smallest change that it finds, relative to the image, `nearest_class` what the
# image would become.

# %%
robustness = served.signatures["robustness"]
answer = robustness(images=tf.constant(x_test[:5]))
print("rho:", answer["rho"].numpy().round(3))
print("nearest class:", answer["nearest_class"].numpy())

# %% [markdown]
# Choose the limit on images of your own: for example such that 5 % of clean
# images are flagged. Among those it flags, errors are far more frequent.


# %%
def rho_of(inputs):
    """What the server says of each image."""
    return robustness(images=tf.constant(inputs))["rho"].numpy()


limit = np.quantile(rho_of(x), 0.05)
flagged = rho_of(x_test) < limit
wrong = report.predictions != report.labels
print(f"limit: rho < {limit:.3f}")
print(f"flagged: {flagged.mean():.1%} of the test images")
print(f"wrong among the flagged: {wrong[flagged].mean():.1%}")
print(f"wrong among the others: {wrong[~flagged].mean():.1%}")
assert wrong[flagged].mean() > wrong[~flagged].mean()

# %% [markdown]
# An image that was changed just enough to cross the boundary lies just behind
# it, so it is flagged:

# %%
found = attacks.DeepFool(overshoot=0.02).run(classifier, x_test)
adversarial = x_test + found.perturbation.numpy()
print(f"flagged: {(rho_of(adversarial) < limit).mean():.1%} of DeepFool's")

# %% [markdown]
# **This is no detector of attacks.** Whoever knows of the limit goes further
# than the boundary, and is not flagged. PGD with a larger eps does so without
# knowing:

# %%
found = attacks.PGD(eps=5.0, steps=20, bounds=(0, 16)).run(
    classifier, x_test, y_test
)
adversarial = x_test + found.perturbation.numpy()
evaded = found.fooled.numpy() & (rho_of(adversarial) >= limit)
print(f"wrong and not flagged: {evaded.mean():.1%} of PGD's")
assert evaded.mean() > 0.02

# %% [markdown]
# Flags find inputs that the classifier is unsure of, for whatever reason. That
# is what they are for.
#
# ## What to try next
#
# - DeepFool's distance is an upper bound. `dd_keras.export(...,
#   attack=attacks.DDN())` finds shorter changes, and takes longer.
# - What a request costs: [Serve a model](../how_to/serving.md).
# - `python apps/client.py` asks a running server, by REST or gRPC, and warns
#   below `--warn_below`.
