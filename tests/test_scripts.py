"""The command lines, as processes."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from release import write_release
from transformers import pipeline

from jca.plots import plot_timeline


ROOT = Path(__file__).parents[1]


def script(name, *arguments):
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_predict(model_folder, silent_video, tmp_path):
    run = script(
        "predict.py", silent_video, "--model", model_folder, "--csv", tmp_path / "a.csv", "--plot", tmp_path / "a.png"
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "40 frames" in run.stdout
    with open(tmp_path / "a.csv", newline="") as file:
        table = list(csv.DictReader(file))
    rows = pipeline("audio-visual-emotion", model=model_folder)(silent_video)
    columns = ["time", "frame", "face", "valence", "arousal", "x0", "y0", "x1", "y1", "face_detected", "audio_present"]
    assert list(table[0]) == columns
    assert [float(line["valence"]) for line in table] == pytest.approx([row["valence"] for row in rows], abs=1e-5)
    assert {line["audio_present"] for line in table} == {"0"}
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate(model_folder, tmp_path):
    write_release(tmp_path / "corpus", {"Validation_Set": ["a"]}, num_frames=60)
    options = ["--cache", tmp_path / "cache", "--output", tmp_path / "metrics.json"]
    run = script("evaluate.py", model_folder, tmp_path / "corpus", *options)
    assert run.returncode == 0, run.stderr[-2000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["frames"] == 60
    assert f"| valence | {metrics['ccc_valence']:.3f} |" in run.stdout


def test_a_plot_of_gaps_and_labels(tmp_path):
    rows = [
        {
            "time": i / 30,
            "valence": np.sin(i / 20),
            "arousal": np.cos(i / 30),
            "face_detected": not 50 < i < 80,
            "audio_present": i > 100,
        }
        for i in range(300)
    ]
    labels = np.full((300, 2), 0.5, np.float32)
    labels[200:] = -5
    plot_timeline(rows, tmp_path / "a.png", "synthetic", labels)
    assert (tmp_path / "a.png").stat().st_size > 20_000
