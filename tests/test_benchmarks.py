"""The benchmarks' command lines. What they measure is not tested: it depends on the machine."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, tiny_model, tiny_processor

from jca.affwild2 import load_affwild2
from jca.preparation import prepare
from jca.synthetic import make_synthetic


FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
ROWS = [  # a table as print_table writes it: text, a time, a ratio
    {"encoder": "face", "path": "plain", "ms": 10.0, "ratio": 1.0},
    {"encoder": "face", "path": "fast", "ms": 5.0, "ratio": 0.5},
    {"encoder": "voice", "path": "fast", "ms": 1.0, "ratio": 0.25},
]


def script(name, *arguments):
    """Exit code, output and errors."""
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent)}
    command = [sys.executable, str(FOLDER / name), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    return run.returncode, run.stdout, run.stderr


def changed(number, **changes):
    return [{**row, **changes} if index == number else row for index, row in enumerate(ROWS)]


@pytest.fixture
def check(tmp_path):
    """Exit code, output and errors of check.py on two tables, each rows or the whole content of a file."""

    def run(before, after, *options):
        files = []
        for name, content in (("before.json", before), ("after.json", after)):
            if isinstance(content, list):
                content = {"hardware": "one core", "commit": name, "ratios": ["ratio"], "rows": content}
            text = content if isinstance(content, str) else json.dumps(content)
            files.append(tmp_path / name)
            files[-1].write_text(text, encoding="utf-8")
        return script("check.py", *files, *options)

    return run


def test_equal_ratios_pass_whatever_the_times_are(check):
    twice = [{**row, "ms": 2 * row["ms"]} for row in ROWS]
    code, output, _ = check(ROWS, list(reversed(twice)))
    assert code == 0
    assert "3 ratios compared, 0 changed by more than 20%" in output
    assert "|" not in output
    assert "commit: before.json; now after.json" in output
    assert "one core" not in output


def test_a_worse_ratio_fails(check):
    code, output, _ = check(ROWS, changed(1, ratio=0.61))
    assert code == 1
    assert "3 ratios compared, 1 changed by more than 20%" in output
    assert output.splitlines()[-1] == "| face, fast | ratio | 0.5 | 0.61 | +22% | worse |"
    assert output.count("worse") == 1


def test_a_better_ratio_is_shown_and_passes(check):
    code, output, _ = check(ROWS, changed(2, ratio=0.1))
    assert code == 0
    assert output.splitlines()[-1] == "| voice, fast | ratio | 0.25 | 0.1 | -60% | better |"
    code, output, _ = check(ROWS, [changed(2, ratio=0.1)[index] for index in (0, 2)] + [{**ROWS[1], "ratio": 5}])
    assert code == 1  # nothing makes good for what got worse
    assert "| better |" in output
    assert "| 0.5 | 5 | +900% | worse |" in output


def test_the_tolerance(check):
    after = changed(1, ratio=0.61)
    assert check(ROWS, after, "--tolerance", 0.3)[0] == 0
    assert check(ROWS, changed(1, ratio=0.55))[0] == 0
    assert check(ROWS, changed(1, ratio=0.55), "--tolerance", 0.05)[0] == 1
    code, _, errors = check(ROWS, after, "--tolerance", -1)
    assert code == 2
    assert "must be 0 or more" in errors


def test_rows_in_one_file_alone_are_said(check):
    code, output, _ = check(ROWS, [*ROWS[:2], {**ROWS[2], "path": "faster"}])
    assert code == 0
    assert "before.json: voice, fast, ratio\n" in output
    assert "after.json: voice, faster, ratio\n" in output
    assert "2 ratios compared" in output
    code, output, _ = check(ROWS, changed(2, ms="not measured", ratio=""))  # as encoders.py without a compiler
    assert code == 0
    assert "before.json: voice, fast, ratio\n" in output
    assert output.count("only in") == 1


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ({"rows": ROWS}, "after.json has no ratios"),
        ({"ratios": [], "rows": ROWS}, "after.json has no ratios"),
        ({"ratios": ["ms"], "rows": ROWS}, "different tables"),
        ({"ratios": ["speed"], "rows": ROWS}, "ratios without a column"),
        ([{**row, "share": 0.5} for row in ROWS], "different tables"),
        ([*ROWS[:2], {"encoder": "voice"}], "rows of different columns"),
        ([{**row, "encoder": f"another {row['encoder']}"} for row in ROWS], "no measured row in common"),
        (ROWS + ROWS[:1], "two rows 'face, plain'"),
        (changed(0, ratio=0.0), "0.0 as 'ratio' of 'face, plain'"),
        (changed(0, ratio=float("nan")), "nan as 'ratio'"),
        ([], "after.json is not what a benchmark writes"),
        ('{"rows": [', "after.json is not what a benchmark writes"),
        ("[1, 2]", "after.json is not what a benchmark writes"),
        ({"ratios": ["ratio"], "rows": [1]}, "after.json is not what a benchmark writes"),
    ],
)
def test_what_cannot_be_compared_is_refused(check, after, message):
    code, output, errors = check(ROWS, after)
    assert code == 2, errors
    assert message in errors
    assert "Traceback" not in errors
    assert not output


def test_a_missing_file_is_refused(tmp_path):
    code, _, errors = script("check.py", tmp_path / "before.json", tmp_path / "after.json")
    assert code == 2
    assert "before.json is not what a benchmark writes" in errors


def test_check_reads_what_print_table_writes(check, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    from measure import print_table

    tables = []
    for number, rows in enumerate((ROWS, changed(1, ratio=0.9))):
        file = tmp_path / f"{number}.json"
        print_table(rows, {"hop": 8}, file, ["ratio"])
        tables.append(json.loads(file.read_text(encoding="utf-8")))
        assert tables[-1]["rows"] == rows
        assert tables[-1]["hop"] == 8
    output = capsys.readouterr().out
    assert "hop: 8" in output
    assert "| face | fast | 5.0 | 0.9 |" in output
    assert check(tables[0], tables[0])[0] == 0
    assert check(*tables)[0] == 1


def test_a_table_is_printed_and_written_and_parameters_are_the_authors(tmp_path):
    file = tmp_path / "table.json"
    code, output, errors = script("fusions.py", "parameters", "--json", file)
    assert code == 0, errors[-2000:]
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 3
    for name, theirs, ours in (row.values() for row in rows):
        assert theirs == ours, name
        assert f"| {name} | {theirs} | {ours} |" in output
    code, _, errors = script("check.py", file, file)
    assert code == 2
    assert "has no ratios" in errors


def test_hops_of_clips_and_of_tracks(tmp_path):
    corpus = make_synthetic(tmp_path / "corpus", 0, 1, seconds=6, num_proc=1)
    prepare({"validation": load_affwild2(corpus, "validation")}, tmp_path / "prepared", tiny_processor(), num_proc=1)
    models = {"clips": tiny_model(), "tracks": tiny_model(video_config={**TINY["video_config"], "tracks": True})}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        tiny_processor().save_pretrained(tmp_path / name)
    file, plot = tmp_path / "table.json", tmp_path / "plot.png"
    code, _, errors = script(
        "hops.py", tmp_path / "prepared", *(tmp_path / name for name in models), "--json", file, "--plot", plot
    )
    assert code == 0, errors[-2000:]
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert [row["hop"] for row in rows] == ["1", "2", "4", "8", "16", "32"] * 2
    for first in (0, 6):
        assert rows[first]["of hop 1's time"] == 1 > rows[first + 3]["of hop 1's time"] > 0
    assert len({row["CCC"] for row in rows[:6]} | {row["CCC, smoothed as in the paper"] for row in rows[:6]}) > 6
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_a_help_and_a_place_in_the_readme(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as done:  # in this process, as new ones would import for half a minute
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    assert done.value.code == 0
    assert f"python benchmarks/{name} " in capsys.readouterr().out
    assert name in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_scripts_are_found():
    assert {"check.py", "fusions.py", "training.py"} <= set(SCRIPTS)
