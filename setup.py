"""Package metadata. Tool settings are in pyproject.toml."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "dd_keras/version.py").read_text()
)[1]
SERVING = ["tensorflow-serving-api>=2.18"]
EVALUATION = ["opencv-python-headless>=4.10", "scikit-image>=0.24"]

setuptools.setup(
    name="dd_keras",
    version=VERSION,
    description="Deep Defense for Keras: classifiers that small adversarial "
    "perturbations do not flip",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["dd_keras", "dd_keras.*"]),
    python_requires=">=3.11,<3.14",
    # Each bound and its reason: README, "Dependencies".
    install_requires=[
        "absl-py>=2.1",
        "adjustText>=1.3",
        "importlib_resources>=5.12",
        "keras>=3.8",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "scikit-learn>=1.4",
        "tensorboard>=2.18",
        "tensorflow-datasets>=4.9.8",
        "tensorflow>=2.18",
    ],
    extras_require={
        "cuda": ["tensorflow[and-cuda]>=2.18"],
        # PASS, the similarity of images.
        "evaluation": EVALUATION,
        # Warm-up requests, and the client's gRPC.
        "serving": SERVING,
        # Their classifiers are tested, `make test-hub`.
        "kerashub": ["keras-hub>=0.32"],
        # The libraries that benchmarks/ compare with.
        "benchmark": [
            "adversarial-robustness-toolbox>=1.20",
            "foolbox>=3.3.4",
            "torch>=2.6",
        ],
        "test": [
            *EVALUATION,
            *SERVING,
            "foolbox>=3.3.4",
            "hypothesis>=6.100",
            "import-linter>=2.1",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
        ],
    },
)
