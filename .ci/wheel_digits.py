"""The library as a customer uses it, in ten lines, on scikit-learn's digits.

`make wheel` runs this where the wheel and scikit-learn are installed and
nothing else. Arguments: the folder of that environment, where the library must
come from, and the directory to export to.
"""

import pathlib
import sys

import keras

import dd_keras

environment, exported = sys.argv[1:]
assert dd_keras.__file__.startswith(environment), dd_keras.__file__
keras.utils.set_random_seed(0)

data = dd_keras.datasets.load("digits")
train, test = (
    dd_keras.datasets.batches(split, data.preprocessing, batch_size=32)
    for split in (data.train, data.test)
)
classifier = dd_keras.networks.digits_cnn()
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
classifier.compile(keras.optimizers.Adam(3e-3), loss)
classifier.fit(train, epochs=2, verbose=2)
model = dd_keras.DeepDefenseModel(classifier, lam=5.0, c=10.0)
model.compile(dd_keras.CoupledSGD(5e-4), loss, metrics=["accuracy"])
model.fit(train, epochs=1, verbose=2)
report = dd_keras.evaluate_robustness(model, test)
print(report.table())
version = dd_keras.export(model, exported, data.preprocessing)

numbers = report.summary()
assert numbers["accuracy"] > 0.5, numbers
assert numbers["rho2"] > 0.01, numbers
assert (pathlib.Path(version) / "saved_model.pb").is_file(), version
