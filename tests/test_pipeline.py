import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_processor
from media import write_video
from transformers import AutoModel, pipeline

import jca
from pipeline_jca import clips_to_frames, smooth, timeline


FLAT = sorted(path.stem for path in Path(__file__).parents[1].glob("*_jca.py"))
COLUMNS = ["time", "frame", "face", "valence", "arousal", "box", "face_detected", "audio_present"]


@pytest.fixture(scope="module")
def pipe(model_folder):
    return pipeline("audio-visual-emotion", model=model_folder)


# Rows -----------------------------------------------------------------------------------------------------------------


def test_one_json_row_for_each_frame(pipe, video):
    rows = pipe(video)
    assert len(rows) == 600
    assert [list(row) for row in rows] == [COLUMNS] * 600
    assert [row["frame"] for row in rows] == list(range(600))
    assert rows[45]["time"] == pytest.approx(1.5, abs=1e-3)
    assert rows[0]["box"] == pytest.approx([8, 0, 56, 48], abs=2.5)  # to a pixel of the 16 that a crop has
    assert {row["face_detected"] for row in rows} == {False}  # nobody has looked for one
    assert {row["audio_present"] for row in rows} == {True}
    assert all(-1 <= row["valence"] <= 1 and -1 <= row["arousal"] <= 1 for row in rows)
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.parametrize("fps", [12, 25, 60])
def test_rows_of_another_frame_rate(pipe, tmp_path, fps):
    rows = pipe(write_video(tmp_path / "video.mp4", 3 * fps, fps=fps))
    assert len(rows) == 3 * fps
    assert rows[-1]["time"] == pytest.approx((3 * fps - 1) / fps, abs=1e-3)
    assert not any(row["audio_present"] for row in rows)


@torch.no_grad()
@pytest.mark.parametrize("hop", [4, 32])
def test_rows_are_the_models_outputs_at_the_ends_of_clips(pipe, model_folder, video, hop):
    model, processor = AutoModel.from_pretrained(model_folder), tiny_processor()
    logits = model(**processor(videos=video, hop=hop)).logits
    rows = pipe(video, hop=hop)
    ends = processor.plan(600, hop)
    checked = 0
    for window, values in zip(ends, logits, strict=True):
        for end, (valence, arousal) in zip(window, values.tolist(), strict=True):
            if end < 600:
                assert rows[end]["valence"] == pytest.approx(np.clip(valence, -1, 1), abs=1e-5)
                assert rows[end]["arousal"] == pytest.approx(np.clip(arousal, -1, 1), abs=1e-5)
                checked += 1
    assert checked == 600 // hop


def test_lists_bytes_and_batches_give_the_same(pipe, video, silent_video):
    expected = [pipe(video), pipe(silent_video)]
    for got in (pipe([video, Path(silent_video).read_bytes()]), pipe([video, silent_video], batch_size=3)):
        for rows, wanted in zip(got, expected, strict=True):
            assert len(rows) == len(wanted)
            np.testing.assert_allclose([r["valence"] for r in rows], [r["valence"] for r in wanted], atol=1e-5)


def test_save_and_load(pipe, tmp_path, silent_video):
    pipe.save_pretrained(tmp_path)
    assert pipeline("audio-visual-emotion", model=str(tmp_path))(silent_video) == pipe(silent_video)


def test_errors(pipe, video):
    with pytest.raises(ValueError, match="Choose one of 1, 2, 4, 8, 16, 32"):
        pipe(video, hop=5)
    with pytest.raises(TypeError, match=r"\['window'\] are no arguments of this pipeline: it takes hop, smoothing"):
        pipe(video, window=3)
    with pytest.raises(ValueError, match="smoothing=20 must be an odd number of frames"):
        pipe(video, smoothing=20)
    with pytest.raises(ValueError, match=r"smoothing names \['joy'\]"):
        pipe(video, smoothing={"joy": 3})
    with pytest.raises(FileNotFoundError, match=r"There is no file 'nothing\.mp4'"):
        pipe("nothing.mp4")


# Timeline -------------------------------------------------------------------------------------------------------------


def test_interpolation_between_the_ends_of_clips():
    values = np.array([[1.0], [3.0], [2.0]])
    out = clips_to_frames(values, np.array([15, 31, 23]), np.array([0, 0.5, 19 / 30, 23 / 30, 27 / 30, 2.0]), 30)
    np.testing.assert_allclose(out[:, 0], [1, 1, 1.5, 2, 2.5, 3])


def test_smoothing_is_centred_and_keeps_the_ends():
    times = np.arange(100) / 30
    ramp = np.linspace(-1, 1, 100)
    np.testing.assert_allclose(smooth(ramp, times, 21)[10:-10], ramp[10:-10], atol=1e-12)  # an even size would shift it
    np.testing.assert_allclose(smooth(np.ones(100), times, 51), 1)  # zeros beyond the ends would pull it down
    values = np.random.default_rng(0).normal(size=100)
    assert smooth(values, times, 5)[50] == pytest.approx(values[48:53].mean())
    assert smooth(values, times, 5)[0] == pytest.approx(values[:3].mean())
    np.testing.assert_allclose(smooth(values, np.arange(100) / 60, 3)[50], values[48:53].mean())  # by time: 1/10 s


def test_smoothing_sizes_by_name():
    times, ends = np.arange(60) / 30, np.arange(60)
    values = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    out = timeline(values, ends, times, ["valence", "arousal"], smoothing={"valence": 5})
    np.testing.assert_allclose(out[:, 0], smooth(values[:, 0], times, 5))
    np.testing.assert_allclose(out[:, 1], values[:, 1])
    paper = timeline(values, ends, times, ["valence", "arousal"], smoothing="paper")
    np.testing.assert_allclose(paper[:, 0], smooth(values[:, 0], times, 21))
    np.testing.assert_allclose(paper[:, 1], smooth(values[:, 1], times, 51))
    assert timeline(values * 9, ends, times, ["valence", "arousal"]).max() == 1


# Remote code ----------------------------------------------------------------------------------------------------------

REMOTE = """
import importlib.util, json, sys
names = sys.argv[4].split()
class Absent:  # an editable install has a finder of its own
    def find_spec(self, name, path=None, target=None):
        if name in names:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import AutoModel, AutoProcessor, pipeline
source, video = sys.argv[1:3]
model = AutoModel.from_pretrained(source, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
for thing in (model, processor):
    assert type(thing).__module__.startswith("transformers_modules."), type(thing)
logits = model(**processor(videos=video)).logits
pipe = pipeline("audio-visual-emotion", model=source, trust_remote_code=True)
assert pipeline(model=source, trust_remote_code=True).task == "audio-visual-emotion"
print("ROWS" + json.dumps(pipe(video)))
pipe.save_pretrained(sys.argv[3])
"""


@pytest.mark.parametrize("kind", ["folder", "hub"])
def test_remote_code_where_the_package_is_not(model_folder, silent_video, tmp_path, kind):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment.update(HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1")
    source = model_folder
    if kind == "hub":  # as the Hub's cache lays a repository out
        commit, repository = "0123456789abcdef0123456789abcdef01234567", tmp_path / "hf/hub/models--org--jca-tiny"
        shutil.copytree(model_folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text(commit)
        source = "org/jca-tiny"
    # -P: without the working directory on sys.path
    run = subprocess.run(
        [sys.executable, "-P", "-c", REMOTE, source, silent_video, str(tmp_path / "again"), " ".join(["jca", *FLAT])],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    rows = json.loads(run.stdout.split("ROWS")[1])
    local = pipeline("audio-visual-emotion", model=model_folder)(silent_video)
    assert [row["frame"] for row in rows] == list(range(40))
    np.testing.assert_allclose([r["arousal"] for r in rows], [r["arousal"] for r in local], atol=1e-5)
    again = pipeline("audio-visual-emotion", model=str(tmp_path / "again"))(silent_video)
    np.testing.assert_allclose([r["arousal"] for r in again], [r["arousal"] for r in local], atol=1e-5)


def test_a_saved_folder_is_a_hub_repository(model_folder):
    assert {path.name for path in Path(model_folder).iterdir()} == {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        *(f"{name}.py" for name in FLAT),
    }
    assert jca.JCAConfig.from_pretrained(model_folder).architectures == ["JCAModel"]
