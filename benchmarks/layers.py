"""Which layers does Deep Defense differentiate rightly?

    python benchmarks/layers.py --output_dir=results

Every layer and activation of the installed Keras that can stand in a
classifier, and operations of TensorFlow that people put into Lambda layers, in
several forms each. The gradient of the regulariser by the weights, a second
derivative, against central differences of its value in float64; see
`second_derivatives.judge`. Written: layers.json, and layers.md, the table.
Finished forms are kept (--rerun judges them again). 4 minutes on one core.
"""

import json
import sys
import time
from pathlib import Path

import harness
import layer_forms
import second_derivatives
from absl import app, flags

from dd_keras.utils import files, tables

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "output_dir", "results", "Where layers.json and layers.md go."
)
flags.DEFINE_bool("rerun", False, "Judges finished forms again.")
flags.DEFINE_list("only", None, "Names of layers. Default: all.")

COLUMNS = ("layer", "form", "relative error", "bound", "remark")
INTRODUCTION = f"""# Layers and their second derivatives

Written by `python benchmarks/layers.py`. Deep Defense's gradient by the weights
goes through the second derivative of every layer. The error is that of the
regulariser's gradient along a random direction, relative to central differences
of the regulariser's value, in float64 with {second_derivatives.ATTACK!r}.
"""


def row_of(form):
    """What the judge says of a form, as figures and words."""
    row = {"layer": form.name, "form": form.settings, "remark": form.rounds}
    started = time.perf_counter()
    try:
        verdict = second_derivatives.judge(form)
    except Exception as error:  # whatever it is, the next is to be judged
        line = str(error).strip().partition("\n")[0]
        row |= {"failed": f"{type(error).__name__}: {line[:300]}"}
    else:
        row |= {
            "error": verdict.error,
            "bound": verdict.tolerance,
            "refused": verdict.refused,
        }
        if verdict.refused is None and not verdict.right:
            row["failed"] = "wrong"
        elif verdict.refused is not None and form.refused is None:
            row["failed"] = "refused, though it was right before"
    return {**row, "seconds": round(time.perf_counter() - started, 2)}


def cells(row):
    """A row of the table."""
    remark = row.get("remark") or ""
    error = row.get("error")
    if row.get("refused"):
        error, remark = None, f"refused: {row['refused']}"
    if row.get("failed"):
        remark = f"FAILED: {row['failed']}"
    return (
        f"`{row['layer']}`",
        f"`{row['form']}`" if row["form"] else "",
        "" if error is None else f"{error:.0e}",
        "" if error is None else f"{row['bound']:.0e}",
        remark,
    )


def markdown(rows):
    """The table, and what is not in it."""
    left_out = {
        **layer_forms.LEFT_OUT,
        **{
            f"activations.{name}": reason
            for name, reason in layer_forms.ACTIVATIONS_LEFT_OUT.items()
        },
    }
    return "\n".join(
        [
            INTRODUCTION,
            tables.render(
                COLUMNS, [cells(row) for row in rows.values()], "markdown"
            ),
            "",
            "Not judged, as they cannot stand in a classifier, or not here:",
            "",
            tables.render(
                ("name", "reason"),
                [(f"`{n}`", reason) for n, reason in left_out.items()],
                "markdown",
            ),
            "",
        ]
    )


def chosen():
    """The forms to judge."""
    forms = layer_forms.forms()
    if FLAGS.only is None:
        return forms
    unknown = {*FLAGS.only} - {form.name for form in forms}
    if unknown:
        raise app.UsageError(
            f"flag --only: expected names as in keras.layers, activations.NAME"
            f" or tf.NAME; received {', '.join(sorted(unknown))}."
        )
    return [form for form in forms if form.name in FLAGS.only]


def kept(path):
    """Rows of an earlier run by the same versions that need not be redone."""
    if FLAGS.rerun or not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["versions"] != harness.versions():
        return {}
    bounds = (
        second_derivatives.TOLERANCE,
        second_derivatives.FLOAT32_TOLERANCE,
    )
    return {
        title: row
        for title, row in found["rows"].items()
        if "failed" not in row and row["bound"] in bounds
    }


def main(argv):
    """Judges all forms; ends with an error if one is neither right nor refused.

    Args:
        argv: not used.
    """
    del argv
    forms = chosen()
    path = Path(FLAGS.output_dir, "layers.json")
    before = kept(path)
    rows = {}
    for number, form in enumerate(forms, start=1):
        row = rows[form.title] = before.get(form.title) or row_of(form)
        said = " ".join(cell for cell in cells(row)[2:] if cell)
        print(f"{number} of {len(forms)}: {form.title}: {said}", flush=True)
    harness.save(
        path,
        "layers",
        rows,
        attack=repr(second_derivatives.ATTACK),
        left_out=layer_forms.LEFT_OUT,
    )
    files.write_text(markdown(rows), path.with_suffix(".md"))
    print(f"Written: {path.with_suffix('.md')}")
    failed = [title for title, row in rows.items() if row.get("failed")]
    if failed:
        sys.exit(f"Failed: {'; '.join(failed)}")


if __name__ == "__main__":
    app.run(main)
