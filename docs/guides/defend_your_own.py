# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # Defend a classifier of your own
#
# A small network on scikit-learn's handwritten digits, trained as usual, then
# defended. About a minute on two cores; nothing is downloaded.

# %%
import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import dd_keras
from dd_keras import attacks

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
x, x_test, y, y_test = train_test_split(images, labels, random_state=0)

# %% [markdown]
# ## The classifier
#
# Anything that Keras can train. Give it logits as outputs if you can choose:
# then a training step shares a forward pass, and is faster.

# %%
classifier = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
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
classifier.evaluate(x_test, y_test, verbose=0, return_dict=True)

# %% [markdown]
# ## How far is the nearest wrong answer?
#
# DeepFool looks for the smallest change of an image that changes the decision.

# %%
found = attacks.DeepFool().run(classifier, x_test[:5])
lengths = np.linalg.norm(found.perturbation.numpy().reshape(5, -1), axis=1)
print("decisions change:", found.fooled.numpy())
print("l_2 length of the change:", lengths.round(2))

# %% [markdown]
# Of an image whose pixels go from 0 to 1, and whose own length is about 3, that
# is not much. Over all test images, relative to the image: `rho2`.

# %%
before = dd_keras.evaluate_robustness(
    classifier,
    x_test,
    y_test,
    metrics=["accuracy", "rho2", "l2_best"],
    bounds=(0, 1),
    verbose=0,
)
print(before.table())

# %% [markdown]
# `rho2` and `l2` are DeepFool's, the measure of the paper. `l2_best` is the
# shortest that DeepFool, DDN and FAB find within the valid pixels: look at this
# one when you compare classifiers.
#
# ## Defend it
#
# Five lines. `c="auto"` looks at how far the boundaries are now.

# %%
model = dd_keras.DeepDefenseModel(classifier, lam=15.0, c="auto")
model.compile(
    dd_keras.CoupledSGD(1e-2),
    "sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
history = model.fit(
    x, y, epochs=15, validation_data=(x_test, y_test), verbose=0
).history
print("c:", round(model.c, 2))
print("val_rho2:", np.round(history["val_rho2"], 3))

# %%
after = dd_keras.evaluate_robustness(
    classifier,
    x_test,
    y_test,
    metrics=["accuracy", "rho2", "l2_best"],
    bounds=(0, 1),
    verbose=0,
)
print(after.table())

# %% [markdown]
# `classifier` and `model` share their weights: the classifier itself is now the
# defended one. Save it as you always do.

# %%
gain = np.mean(after.values["l2_best"]) / np.mean(before.values["l2_best"])
print(f"The nearest adversarial image is {gain:.2f} times as far away.")
assert gain > 1.1

# %% [markdown]
# ## What to try next
#
# - A smaller `c` gains more distance, and may cost accuracy: see "Choose c, lam
#   and the rate".
# - `gradient="implicit"` needs no second derivatives and takes less time.
# - `dd_keras.export(model, "served")` for TensorFlow Serving.
# - The other defences: `dd_keras.TRADESModel`, `dd_keras.MMAModel`, and
#   `dd_keras.AdversarialTrainingModel` take the same `compile` and `fit`.
