"""Many videos to files, by the command line as a process."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_model
from media import write_video
from transformers import pipeline

from jca.prediction import SUFFIXES, find_sources, predict_files
from jca.timeline import Timeline


ROOT = Path(__file__).parents[1]


def predict(*arguments, launcher=()):
    command = [*(launcher or [sys.executable]), str(ROOT / "scripts/predict.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two videos, one of them in a folder below, a file that is none and one that is cut off."""
    root = tmp_path_factory.mktemp("videos")
    (root / "day 2").mkdir()
    write_video(root / "ä b.mp4", 45)
    write_video(root / "day 2/c.MOV", 60, waveform=np.zeros(88200, np.float32))
    (root / "bad.mp4").write_text("this is no video")
    (root / "notes.txt").write_text("not asked for")
    whole = Path(write_video(tmp_path_factory.mktemp("cut") / "cut.mkv", 300)).read_bytes()
    (root / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    return root


def test_a_folder_of_videos(folder, model_folder, tmp_path):
    out = tmp_path / "out"
    run = predict(folder, "--model", model_folder, "--out", out, "--json")
    assert run.returncode == 1
    results = {Path(r["source"]).name: r for r in map(json.loads, run.stdout.splitlines())}
    assert {name: r["status"] for name, r in results.items()} == {
        "ä b.mp4": "done",
        "c.MOV": "done",
        "bad.mp4": "failed",
        "cut.mkv": "incomplete",
    }
    assert results["ä b.mp4"]["rows"] == 45
    assert results["ä b.mp4"]["seconds"] == pytest.approx(1.5, abs=0.01)
    assert results["c.MOV"]["files"] == [str(out / "day 2/c.csv")]
    rows = pipeline("audio-visual-emotion", model=model_folder)(str(folder / "day 2/c.MOV"))
    np.testing.assert_allclose(
        Timeline.read_csv(out / "day 2/c.csv").valence, [row["valence"] for row in rows], atol=1e-5
    )
    # what is wrong stands at the end, with the reason
    assert "2 of 4 videos:" in run.stderr
    assert re.search(r"bad\.mp4: failed: .*can not be opened as media", run.stderr)
    assert re.search(r"cut\.mkv: incomplete: .* lacks 5\.\d s that its header promises", run.stderr)
    assert "Traceback" not in run.stderr
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {"ä b.csv", "cut.csv", "cut.incomplete.txt", "day 2/c.csv", "predict.json"}
    again = predict(folder, "--model", model_folder, "--out", out, "--json")
    assert again.returncode == 1  # what is kept is still incomplete
    assert [json.loads(line)["status"] for line in again.stdout.splitlines()].count("kept") == 3
    assert re.search(r"cut\.mkv: kept: .* lacks 5\.\d s", again.stderr)


def test_it_goes_on_and_keeps_what_is_there(folder, model_folder, tmp_path):
    video, out = folder / "ä b.mp4", tmp_path / "out"
    arguments = [video, folder / "day 2/c.MOV", "--model", model_folder, "--out", out]
    assert predict(video, "--model", model_folder, "--out", out).returncode == 0
    before = (out / "ä b.csv").stat().st_mtime_ns
    run = predict(*arguments)
    assert run.returncode == 0
    assert re.search(r"ä b\.mp4: kept$", run.stdout, re.M)
    assert re.search(r"c\.MOV: done, 60 rows, [\d.]+ x real time$", run.stdout, re.M)
    assert (out / "ä b.csv").stat().st_mtime_ns == before
    later = time.time() + 5
    os.utime(video, (later, later))  # a newer video
    assert "ä b.mp4: done" in predict(*arguments).stdout
    os.utime(video)
    run = predict(*arguments, "--hop", 4)
    assert run.returncode == 1
    assert "timelines made with hop=8, and hop=4 was asked for: choose another folder, or" in run.stderr
    assert "--overwrite" in run.stderr
    assert predict(video, "--model", model_folder, "--out", out, "--hop", 5).returncode == 1  # and leaves nothing
    run = predict(video, "--model", model_folder, "--out", out, "--hop", 4, "--overwrite")
    assert run.returncode == 0
    run = predict(*arguments, "--hop", 4)  # what was made with other settings is no longer current
    assert re.search(r"ä b\.mp4: kept$", run.stdout, re.M)
    assert re.search(r"c\.MOV: done", run.stdout)
    run = predict(*arguments, "--hop", 4, "--backend", "torch")
    assert run.returncode == 1
    assert "timelines made with backend=None, and backend='torch' was asked for" in run.stderr
    run = predict(*arguments, "--hop", 4, "--backend", "onnx")
    assert (run.returncode, "holds no graphs" in run.stderr, "Traceback" in run.stderr) == (1, True, False)
    run = predict(*arguments, "--hop", 4, "--overwrite", "--quiet", "--backend", "torch")
    assert (run.returncode, run.stdout) == (0, "")
    assert "it/s" not in run.stderr


def test_all_that_can_be_asked_for(folder, model_folder, tmp_path):
    run = predict(folder / "day 2/c.MOV", "--model", model_folder, "--out", tmp_path, "--save", *SUFFIXES)
    assert run.returncode == 0, run.stderr[-2000:]
    names = [f"c.{kind}" for kind in ("csv", "jsonl", "parquet", "vtt", "srt", "eaf", "TextGrid", "png")]
    names += ["c.circumplex.png", "c.overlay.mp4", "c.summary.json", "predict.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert json.loads((tmp_path / "c.summary.json").read_text())
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_processes_share_the_videos(folder, model_folder, tmp_path):
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    run = predict(folder, "--model", model_folder, "--out", tmp_path, "--json", launcher=launcher)
    assert run.returncode != 0
    results = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(results) == len({result["source"] for result in results}) == 4
    assert run.stderr.count("2 of 4 videos:") == 1
    assert {path.name for path in tmp_path.rglob("*.csv")} == {"ä b.csv", "c.csv", "cut.csv"}


def test_what_can_not_be_is_said_before_the_work(folder, model_folder, tmp_path):
    (tmp_path / "v").mkdir()
    for name in ("a.mp4", "a.circumplex.mp4"):
        (tmp_path / "v" / name).symlink_to(folder / "ä b.mp4" if name == "a.mp4" else folder / "day 2/c.MOV")
    save = ("--save", "plot", "circumplex")
    run = predict(tmp_path / "v", "--model", model_folder, "--out", tmp_path / "out", *save)
    assert run.returncode == 1
    assert "would both have the file a.circumplex.png: give them in runs of their own." in run.stderr
    pipe = pipeline("audio-visual-emotion", model=model_folder)
    pipe.model = tiny_model(modalities=["video"], fusion="concat")
    with pytest.raises(ValueError, match=r"this model has \['video'\] alone"):
        list(predict_files(pipe, {"x.mp4": "x"}, tmp_path / "out", ["plot"], explain=True))
    assert not (tmp_path / "out").exists()


def test_names_of_files(folder, tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/x.mp4", "a/x.mov", "y.mp4"):
        (tmp_path / name).touch()
    assert find_sources([str(tmp_path / "a"), str(tmp_path / "y.mp4"), "http://host/z%20z.mp4?key=1"]) == {
        str(tmp_path / "a/x.mov"): "x.mov",
        str(tmp_path / "a/x.mp4"): "x.mp4",
        str(tmp_path / "y.mp4"): "y",
        "http://host/z%20z.mp4?key=1": "z z",
    }
    with pytest.raises(FileNotFoundError, match="There is no file or folder 'nothing.mp4'"):
        find_sources(["nothing.mp4"])
    assert find_sources([str(tmp_path / "y.mp4"), str(tmp_path / "a/../y.mp4")]) == {str(tmp_path / "y.mp4"): "y"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no video"):
        find_sources([str(tmp_path / "empty")])
    (tmp_path / "b").mkdir()
    (tmp_path / "b/y.mp4").touch()
    with pytest.raises(ValueError, match="would have the same files"):
        find_sources([str(tmp_path / "y.mp4"), str(tmp_path / "b/y.mp4")])
