"""Package metadata. Tool settings are in pyproject.toml."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "dd_keras/version.py").read_text()
)[1]
# What the programs in apps/ and dd_keras.plots need besides the library.
APPS = [
    "adjustText>=1.3",
    "jinja2>=3.1",
    "matplotlib>=3.8",
    "scikit-learn>=1.4",
    "tensorboard>=2.18",
]
EVALUATION = ["opencv-python-headless>=4.10", "scikit-image>=0.24"]
# `make docs`.
DOCS = [
    "furo>=2024.8",
    "jupytext>=1.16",
    "keras-tuner>=1.4.7",
    "latex2mathml>=3.77",
    "myst-nb>=1.1",
    "sphinx>=8",
]
SERVING = ["tensorflow-serving-api>=2.18"]

setuptools.setup(
    name="dd_keras",
    version=VERSION,
    description="Deep Defense for Keras: classifiers that small adversarial "
    "perturbations do not flip",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords=[
        "adversarial examples",
        "adversarial robustness",
        "adversarial training",
        "deep defense",
        "deepfool",
        "keras",
        "tensorflow",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Security",
        "Typing :: Typed",
    ],
    packages=setuptools.find_packages(include=["dd_keras", "dd_keras.*"]),
    package_data={
        "dd_keras": ["py.typed"],
        "dd_keras.evaluation.html_report": ["templates/*"],
    },
    python_requires=">=3.11,<3.14",
    # Each bound and its reason: README, "Dependencies". The lowest versions
    # are tried by `make matrix`.
    install_requires=[
        "absl-py>=2.1",
        "importlib_resources>=5.12",
        "keras>=3.8",
        "numpy>=1.26",
        "tensorflow-datasets>=4.9.8",
        "tensorflow>=2.18",
    ],
    extras_require={
        "apps": APPS,
        "cuda": ["tensorflow[and-cuda]>=2.18"],
        # PASS, the similarity of images.
        "evaluation": EVALUATION,
        # Warm-up requests, and the client's gRPC.
        "serving": SERVING,
        # Their classifiers are tested, `make matrix`.
        "kerashub": ["keras-hub>=0.32"],
        # The libraries that benchmarks/ compare with.
        "benchmark": [
            "adversarial-robustness-toolbox>=1.20",
            "foolbox>=3.3.4",
            "torch>=2.6",
        ],
        "docs": [*APPS, *DOCS],
        "test": [
            *APPS,
            *DOCS,
            *EVALUATION,
            *SERVING,
            "build>=1.2",
            "foolbox>=3.3.4",
            "hypothesis>=6.100",
            "import-linter>=2.1",
            "mypy>=1.13",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
        ],
    },
)
