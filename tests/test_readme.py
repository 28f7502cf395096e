"""What README.md and the others print: its script, its commands, its files."""

import re

from conftest import ROOT

README = (ROOT / "README.md").read_text("utf-8")


def numbers(printed, name):
    """The values of a metric in all tables printed, in order."""
    rows = re.findall(rf"^{name} +([\d.]+)", printed, re.MULTILINE)
    return [float(row) for row in rows]


def test_the_first_script_runs_as_printed_and_gains(
    tmp_path, monkeypatch, capsys
):
    (script,) = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    before, after = numbers(printed, "rho2")
    assert after > 1.25 * before
    before, after = numbers(printed, "accuracy")
    assert after >= before
    assert (tmp_path / "savedmodels/robust/1/saved_model.pb").exists()
