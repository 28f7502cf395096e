"""The floors of the house: every import points down."""

import ast
import pathlib
import textwrap

import pytest

import dd_keras

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Which floor each part stands on. A part may import its own modules and the
# parts of lower floors; leaves import nothing of ours.
FLOORS = {
    "apps": 4,
    "dd_keras": 3,  # __init__.py, which shows everything to the outside
    "dd_keras.defenses": 2,
    "dd_keras.evaluation": 2,
    "dd_keras.serving": 2,
    "dd_keras.attacks": 1,
    "dd_keras.fitting": 1,
    "dd_keras.applications": 0,
    "dd_keras.classifier": 0,
    "dd_keras.config": 0,
    "dd_keras.datasets": 0,
    "dd_keras.distribution": 0,
    "dd_keras.files": 0,
    "dd_keras.losses": 0,
    "dd_keras.networks": 0,
    "dd_keras.numerics": 0,
    "dd_keras.optimizers": 0,
    "dd_keras.tables": 0,
    "dd_keras.version": 0,
}
# The only places that may import these; a name that ends in "." is a folder.
ONLY = {
    "absl.flags": "apps.",
    "tensorflow_datasets": "dd_keras.datasets.tfds_sets",
    "matplotlib": "dd_keras.evaluation.figures",
    "adjustText": "dd_keras.evaluation.figures",
    "cv2": "dd_keras.evaluation.similarity",
    "skimage": "dd_keras.evaluation.similarity",
}


def violations(root):
    """What the imports under root/apps and root/dd_keras do wrong.

    Args:
        root: `pathlib.Path` of a source tree.

    Returns:
        list of str, one for each forbidden import, empty if all is well.
    """
    files = {}
    for path in sorted(
        [*root.glob("apps/**/*.py"), *root.glob("dd_keras/**/*.py")]
    ):
        parts = path.relative_to(root).with_suffix("").parts
        package = parts[:-1]
        name = ".".join(package if parts[-1] == "__init__" else parts)
        files[name] = (".".join(package), path)
    found = []
    for name, (package, path) in files.items():
        if part_of(name) not in FLOORS:
            found.append(f"{name} stands on no floor: add it to FLOORS")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for imported in sorted(imports(tree, package, set(files))):
            reason = forbidden(name, imported)
            if reason:
                found.append(f"{name} imports {imported}: {reason}")
    return found


def imports(tree, package, modules):
    """Full names of all that a file imports, also inside of functions.

    `from a import b` is a.b if that is one of our modules, or may be another
    package's; a name out of one of our modules counts as that module. Apps
    find each other without their folder's name.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                outer = package.split(".")
                outer = outer[: len(outer) - node.level + 1]
                source = ".".join([*outer, source] if source else outer)
            for alias in node.names:
                full = f"{source}.{alias.name}"
                ours = source.split(".")[0] in ("apps", "dd_keras")
                names.add(source if ours and full not in modules else full)
    return {f"apps.{n}" if f"apps.{n}" in modules else n for n in names}


def part_of(name):
    """The part of FLOORS that a module belongs to."""
    parts = name.split(".")
    return "apps" if parts[0] == "apps" else ".".join(parts[:2])


def forbidden(importer, imported):
    """Why `importer` must not import `imported`; None if it may."""
    for library, place in ONLY.items():
        if f"{imported}.".startswith(f"{library}.") and (
            not importer.startswith(place)
            if place.endswith(".")
            else importer != place
        ):
            return f"only {place.rstrip('.')} may"
    if imported.split(".")[0] not in ("apps", "dd_keras"):
        return None
    source, target = part_of(importer), part_of(imported)
    if source == target or FLOORS[source] > FLOORS.get(target, 0):
        return None
    if FLOORS[source] == FLOORS[target]:
        return "it points sideways"
    return "it points up"


def write_tree(root, files):
    """A clean tree of all parts, with some files in the place of its own."""
    clean = {
        "dd_keras/__init__.py": """
            from dd_keras import attacks, losses
            from dd_keras.defenses import Defense
            from dd_keras.serving import export
            """,
        "dd_keras/losses.py": "import tensorflow as tf",
        "dd_keras/numerics.py": "from absl import logging",
        "dd_keras/datasets/tfds_sets.py": """
            def load():
                import tensorflow_datasets as tfds
            """,
        "dd_keras/attacks/__init__.py": "from .deepfool import DeepFool",
        "dd_keras/attacks/base.py": "from dd_keras.losses import loss",
        "dd_keras/attacks/deepfool.py": """
            from dd_keras import numerics
            from dd_keras.attacks import base
            from .. import losses
            """,
        "dd_keras/defenses/__init__.py": """
            from dd_keras.defenses.deep_defense import Defense
            """,
        "dd_keras/defenses/deep_defense.py": """
            from dd_keras.attacks import DeepFool
            """,
        "dd_keras/evaluation/__init__.py": "",
        "dd_keras/evaluation/figures.py": """
            from matplotlib.figure import Figure
            """,
        "dd_keras/serving.py": "import dd_keras.losses",
        "apps/mnist.py": """
            from absl import app, flags
            import dd_keras
            import recipe
            from dd_keras.evaluation import figures
            """,
    }
    for name, source in {**clean, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")


def test_every_import_points_down():
    assert (ROOT / "dd_keras" / "__init__.py").is_file()
    assert violations(ROOT) == []


def test_clean_tree_passes(tmp_path):
    write_tree(tmp_path, {})
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        (
            "dd_keras/attacks/deepfool.py",
            "from dd_keras.defenses import Defense",
            "dd_keras.attacks.deepfool imports dd_keras.defenses: it points up",
        ),
        (
            "dd_keras/attacks/deepfool.py",
            "from dd_keras import serving",
            "dd_keras.attacks.deepfool imports dd_keras.serving: it points up",
        ),
        (
            "dd_keras/defenses/deep_defense.py",
            "import dd_keras",
            "dd_keras.defenses.deep_defense imports dd_keras: it points up",
        ),
        (
            "dd_keras/defenses/deep_defense.py",
            "from dd_keras import export",
            "dd_keras.defenses.deep_defense imports dd_keras: it points up",
        ),
        (
            "dd_keras/evaluation/evaluate.py",
            "from apps import mnist",
            "dd_keras.evaluation.evaluate imports apps.mnist: it points up",
        ),
        (
            "dd_keras/evaluation/evaluate.py",
            "import mnist",
            "dd_keras.evaluation.evaluate imports apps.mnist: it points up",
        ),
        (
            "dd_keras/__init__.py",
            "import apps.mnist",
            "dd_keras imports apps.mnist: it points up",
        ),
        (
            "dd_keras/defenses/deep_defense.py",
            "import dd_keras.evaluation.figures",
            "dd_keras.defenses.deep_defense imports "
            "dd_keras.evaluation.figures: it points sideways",
        ),
        (
            "dd_keras/evaluation/evaluate.py",
            "def f():\n    from ..defenses import deep_defense",
            "dd_keras.evaluation.evaluate imports "
            "dd_keras.defenses.deep_defense: it points sideways",
        ),
        (
            "dd_keras/serving.py",
            "from .defenses import Defense",
            "dd_keras.serving imports dd_keras.defenses: it points sideways",
        ),
        (
            "dd_keras/evaluation/__init__.py",
            "from dd_keras.serving import export",
            "dd_keras.evaluation imports dd_keras.serving: it points sideways",
        ),
        (
            "dd_keras/numerics.py",
            "from . import losses",
            "dd_keras.numerics imports dd_keras.losses: it points sideways",
        ),
        (
            "dd_keras/losses.py",
            "from dd_keras.attacks.base import Attack",
            "dd_keras.losses imports dd_keras.attacks.base: it points up",
        ),
        (
            "dd_keras/serving.py",
            "from absl import flags",
            "dd_keras.serving imports absl.flags: only apps may",
        ),
        (
            "dd_keras/serving.py",
            "import absl.flags as f",
            "dd_keras.serving imports absl.flags: only apps may",
        ),
        (
            "dd_keras/evaluation/evaluate.py",
            "import tensorflow_datasets as tfds",
            "dd_keras.evaluation.evaluate imports tensorflow_datasets: only "
            "dd_keras.datasets.tfds_sets may",
        ),
        (
            "apps/mnist.py",
            "import tensorflow_datasets",
            "apps.mnist imports tensorflow_datasets: only "
            "dd_keras.datasets.tfds_sets may",
        ),
        (
            "dd_keras/evaluation/evaluate.py",
            "def plot():\n    import matplotlib.pyplot as plt",
            "dd_keras.evaluation.evaluate imports matplotlib.pyplot: only "
            "dd_keras.evaluation.figures may",
        ),
        (
            "dd_keras/helpers.py",
            "",
            "dd_keras.helpers stands on no floor: add it to FLOORS",
        ),
    ],
)
def test_violating_tree_is_caught(tmp_path, file, source, complaint):
    write_tree(tmp_path, {file: source})
    assert violations(tmp_path) == [complaint]


def test_public_names_exist_and_are_sorted():
    assert dd_keras.__all__ == sorted(dd_keras.__all__)
    assert len(set(dd_keras.__all__)) == len(dd_keras.__all__)
    missing = [n for n in dd_keras.__all__ if not hasattr(dd_keras, n)]
    assert missing == []
