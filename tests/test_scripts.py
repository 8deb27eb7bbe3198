"""The command lines, as processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from release import write_release
from transformers import pipeline


ROOT = Path(__file__).parents[1]


def script(name, *arguments):
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A release with two people in one video and a test split."""
    root = tmp_path_factory.mktemp("corpus")
    write_release(root, {"Train_Set": ["a", "b"], "Validation_Set": ["c", "d"]}, num_frames=90)
    write_release(root, {"Test_Set": ["e"]}, num_frames=70)
    names = root / "names_of_videos_in_each_test_set"
    names.mkdir()
    (names / "Valence_Arousal_Estimation_Challenge_test_set_release.txt").write_text("e\n")
    return root


def test_prepare_and_evaluate(model_folder, corpus, tmp_path):
    run = script("prepare_affwild2.py", corpus, tmp_path / "prepared", "--num_proc", 1)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "| train | 2 | 180 | 180 |" in run.stdout
    assert (tmp_path / "prepared/labels.png").read_bytes().startswith(b"\x89PNG")
    run = script("prepare_affwild2.py", "--check", tmp_path / "prepared")
    assert "every file is there and as its hash says" in run.stdout
    (tmp_path / "prepared/train/a.arrow").unlink()
    run = script("prepare_affwild2.py", "--check", tmp_path / "prepared")
    assert run.returncode == 1
    assert "train/a.arrow: is missing" in run.stderr
    run = script("prepare_affwild2.py", corpus, tmp_path / "prepared")  # goes on
    assert run.returncode == 0, run.stderr[-2000:]

    options = ["--cache", tmp_path / "cache", "--output", tmp_path / "metrics.json", "--smoothing", "train"]
    run = script("evaluate.py", model_folder, tmp_path / "prepared", *options)
    assert run.returncode == 0, run.stderr[-2000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["frames"] == 180
    assert f"| valence | {metrics['ccc_valence']:.3f} |" in run.stdout
    assert f"| {metrics['authors']['ccc_arousal']:.3f} |" in run.stdout
    assert set(metrics["smoothing"]) == {"valence", "arousal"}
    run = script("evaluate.py", model_folder, tmp_path / "prepared", "--split", "train", "--smoothing", "train")
    assert run.returncode != 0
    assert "a smoothing chosen on the split that is scored would flatter it" in run.stderr


def test_submission(model_folder, corpus, tmp_path):
    sample = tmp_path / "sample.txt"
    rows = [f"e/{number:05d}.jpg,0,0" for number in range(1, 72)]  # one more than there are frames
    sample.write_text("\n".join(["image_location,valence,arousal", *rows]) + "\n")
    target, cache = tmp_path / "submission.txt", ["--cache", tmp_path / "cache"]
    run = script("make_submission.py", model_folder, corpus, target, "--sample", sample, *cache)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "submission:" in run.stdout
    assert "e" in run.stdout.splitlines()[0]  # says that the last row was repeated
    lines = target.read_text().splitlines()
    assert lines[0] == "image_location,valence,arousal"
    assert len(lines) == 72
    assert lines[-1].split(",")[1:] == lines[-2].split(",")[1:]
    expected = pipeline("audio-visual-emotion", model=model_folder)(str(corpus / "batch1/e.mp4"))
    assert len(expected) == 70


def test_a_wrong_root_ends_with_a_report(model_folder, tmp_path):
    for name, arguments in (
        ("prepare_affwild2.py", [tmp_path, tmp_path / "out"]),
        ("evaluate.py", [model_folder, tmp_path]),
        ("make_submission.py", [model_folder, tmp_path, tmp_path / "out.txt"]),
    ):
        run = script(name, *arguments)
        assert run.returncode == 1
        assert "1 problem" in run.stderr
        assert "Traceback" not in run.stderr
