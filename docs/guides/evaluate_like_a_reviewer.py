# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # Evaluate like a reviewer
#
# Most claims of robustness do not survive a better attack. This guide goes
# through what a critical reader would ask: the strongest attacks, what masked
# gradients look like, and how to read the warnings. About two minutes on two
# cores.

# %%
import warnings

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import dd_keras
from dd_keras import attacks

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 64).astype("float32") / 16
x, x_test, y, y_test = train_test_split(images, labels, random_state=0)
x_test, y_test = x_test[:200], y_test[:200]


def trained(*last):
    """A small network on the digits."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
            *last,
        ]
    )
    model.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(x, y, epochs=30, verbose=0)
    return model


classifier = trained()

# %% [markdown]
# ## AutoAttack
#
# Accuracy within a ball, under four attacks, each on what the last ones left:
# APGD on the cross-entropy and on the difference of logits, FAB, and Square,
# which needs no gradients.

# %%
autoattack = attacks.AutoAttack(eps=0.1, bounds=(0, 1))
report = dd_keras.evaluate_robustness(
    classifier,
    x_test,
    y_test,
    metrics=["accuracy", "pgd", autoattack, "l2_best"],
    bounds=(0, 1),
    verbose=0,
)
print(report.table())

# %% [markdown]
# `report.robust_accuracy(eps)` reads the accuracy at any l_2 radius off
# `l2_best`, without a further attack.

# %%
curve = report.robust_accuracy([0.1, 0.2, 0.4])
for eps, accuracy in zip(curve["eps"], curve["accuracy"], strict=True):
    print(f"l_2 up to {eps}: {accuracy:.1%}")

# %% [markdown]
# ## What masking looks like
#
# Bend the logits by a function that saturates. Each decision stays what it was,
# and so does the distance to the boundary; but where the function is flat,
# attacks have no gradient to follow.


# %%
@keras.saving.register_keras_serializable("guide")
class Saturated(keras.layers.Layer):
    """The same decisions, with gradients that vanish."""

    def call(self, z):
        return 10 * keras.ops.tanh(z * 3)


masked = keras.Sequential([classifier, Saturated()])
with warnings.catch_warnings(record=True):
    warnings.simplefilter("always")
    report = dd_keras.evaluate_robustness(
        masked,
        x_test,
        y_test,
        metrics=["accuracy", attacks.PGD(0.1, steps=10), autoattack],
        bounds=(0, 1),
        activation="linear",  # what it ends in: logits
        verbose=0,
    )
print(report.table())

# %% [markdown]
# The robustness is that of the classifier above. Compare the lines
# `autoattack_accuracy_after_...` of the two tables: there APGD on the
# cross-entropy found nearly everything; here it leaves many more images, and
# Square, which takes no gradient, still finds some that all attacks before it
# did not. That is what masking looks like, and the warnings under the table say
# so. A defence that was evaluated by APGD on the cross-entropy alone would look
# better than it is.
#
# The metric `adaptive` asks on purpose: at an eps that lets any image become
# any other, is anything left? Do restarts find more? Where does the float32
# cross-entropy have no gradient at all?

# %%
with warnings.catch_warnings(record=True):
    warnings.simplefilter("always")
    report = dd_keras.evaluate_robustness(
        masked,
        x_test,
        y_test,
        metrics=["adaptive"],
        bounds=(0, 1),
        activation="linear",
        verbose=0,
    )
print(report.table())

# %% [markdown]
# ## Two classifiers on the same images
#
# An interval around each of two means says little of their difference. On the
# same images, compare pair by pair.

# %%
other = trained()
defended = dd_keras.DeepDefenseModel(other, c="auto")
defended.compile(dd_keras.CoupledSGD(1e-2), "sparse_categorical_crossentropy")
defended.fit(x, y, epochs=10, verbose=0)
distances = [
    dd_keras.evaluate_robustness(
        model, x_test, y_test, metrics=["l2_best"], bounds=(0, 1), verbose=0
    ).values["l2_best"]
    for model in (classifier, other)
]
ratio = dd_keras.evaluation.statistics.ratio_of_means(*distances[::-1])
print(
    f"{ratio.value:.2f} times as far "
    f"(95 %: {ratio.low:.2f} to {ratio.high:.2f}); "
    f"farther on {np.mean(distances[1] > distances[0]):.0%} of the images"
)

# %% [markdown]
# ## What to try next
#
# - `version="plus"` of AutoAttack, with restarts.
# - `evaluation.AccuracyUnderTransfer(undefended, attack)`: does what was found
#   on another classifier work here?
# - A page to share: `report.to_html("report.html")`.
# - For files: `python apps/compare.py --model=before=BEFORE.keras
#   --model=after=AFTER.keras --ours=after --best=1000 --html`. `evaluate.py
#   --shard=1/4` is for several machines.
