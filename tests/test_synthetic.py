import hashlib
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from jca import synthetic
from jca.affwild2 import load_affwild2
from jca.corpus import frame_labels
from jca.synthetic import CROP, SAMPLING_RATE, WIDTH, latents, make_synthetic


SEED = 9  # frames without a face, frames without annotation and spoilt sound are in its first seconds
SETTINGS = {"num_train": 2, "num_validation": 1, "seconds": 3.0, "fps": 30, "seed": SEED}
NUM_FRAMES = 90
LEFT = (WIDTH - CROP) // 2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("synthetic") / "corpus", **SETTINGS, num_proc=2)


def hashes(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pictures(path: Path) -> np.ndarray:
    """`(frames, height, width, 3)` float32."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)]).astype(np.float32)


def rows(root: Path, split: str) -> dict[str, dict]:
    return {row["video_id"]: row for row in load_affwild2(root, split)}


def test_layout_is_that_of_the_release(corpus):
    train, validation = rows(corpus, "train"), rows(corpus, "validation")
    assert sorted(train) == ["synthetic-0000", "synthetic-0001"]
    assert sorted(validation) == ["synthetic-0002"]  # another video, another subject
    text = (corpus / "VA_Estimation_Challenge/Train_Set/synthetic-0000.txt").read_text().splitlines()
    assert text[0] == "valence,arousal"
    assert len(text) == 1 + NUM_FRAMES
    for index, row in enumerate([*train.values(), *validation.values()]):
        truth = latents(SEED, index, 3.0, 30)
        labels = frame_labels(row)
        known = labels[:, 0] != -5
        assert np.array_equal(known, truth.annotated)
        assert (labels[~known] == -5).all()
        np.testing.assert_allclose(labels[known, 0], truth.valence[known], atol=6e-5)
        np.testing.assert_allclose(labels[known, 1], truth.arousal[known], atol=6e-5)
    assert "nothing about real people" in (corpus / "README.md").read_text().replace("\n", " ").lower()
    assert not list(corpus.rglob("*.part"))


def test_media_has_both_streams_from_time_zero(corpus):
    for index, path in enumerate(sorted((corpus / "batch1").glob("*.mp4"))):
        with av.open(str(path)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, video.width, video.height) == ("h264", 144, 112)
            assert (audio.codec_context.name, audio.rate, audio.channels) == ("aac", SAMPLING_RATE, 1)
            packets = [(p.stream.type, p.dts * p.time_base) for p in container.demux() if p.dts is not None]
            container.seek(0)
            frames = list(container.decode(video=0))
            container.seek(0)
            sound = [(frame.time, frame.to_ndarray()[0]) for frame in container.decode(audio=0)]
        assert [frame.time for frame in frames] == pytest.approx(np.arange(NUM_FRAMES) / 30, abs=1e-3)
        truth, (_, looks, sounds, _) = latents(SEED, index, 3.0, 30), synthetic._generators(SEED, index)
        spoken, _ = synthetic.speak(synthetic.draw_subject(looks), truth, 30, sounds)
        waveform = np.concatenate([samples for _, samples in sound])
        assert sound[0][0] == 0
        assert len(spoken) == 3 * SAMPLING_RATE
        assert 0 <= len(waveform) - len(spoken) < 1024  # the encoder fills up its last block
        assert np.corrcoef(waveform[: len(spoken)], spoken)[0, 1] > 0.95  # and nothing is late
        apart, last = [], {}
        for kind, time in packets:  # in the file's order: the other stream is never far away
            last[kind] = time
            apart.append(max(last.values()) - min(last.values()))
        assert max(apart) < 1


def test_crops_are_the_centre_of_the_frames_that_show_a_face(corpus):
    present = [latents(SEED, index, 3.0, 30).face_present for index in range(3)]
    assert not all(p.all() for p in present)  # else the seed of this test is a poor choice
    for index, here in enumerate(present):
        name = f"synthetic-{index:04d}"
        files = {path.name for path in (corpus / "cropped_aligned" / name).iterdir()}
        assert files == {f"{frame + 1:05d}.jpg" for frame in np.flatnonzero(here)}
        frames = pictures(corpus / "batch1" / f"{name}.mp4")[:, :, LEFT : LEFT + CROP]
        for frame in np.flatnonzero(~latents(SEED, index, 3.0, 30).video_spoilt)[::7]:
            (crop,) = pictures(corpus / "cropped_aligned" / name / f"{frame + 1:05d}.jpg")
            assert crop.shape == (CROP, CROP, 3)
            difference = abs(frames - crop).mean((1, 2, 3))
            assert difference[frame] < 3
            assert difference[frame] < difference.min() + 1  # and is not another frame's


def test_seed_alone_decides_the_files(corpus, tmp_path):
    again = make_synthetic(tmp_path / "again", **SETTINGS, num_proc=1)
    assert hashes(again) == hashes(corpus)
    one = {"num_train": 1, "num_validation": 0, "seed": SEED + 1}
    other = make_synthetic(tmp_path / "other", **{**SETTINGS, **one})
    media = "batch1/synthetic-0000.mp4"
    assert hashes(other)[media] != hashes(corpus)[media]


def test_restart_makes_what_is_missing_and_nothing_else(corpus, tmp_path):
    root = Path(shutil.copytree(corpus, tmp_path / "stopped"))
    (root / "VA_Estimation_Challenge/Train_Set/synthetic-0001.txt").unlink()  # it was not complete
    (root / "batch1/synthetic-0001.mp4").write_bytes(b"half a file")
    (root / "cropped_aligned/synthetic-0001/99999.jpg").write_bytes(b"left over")
    (root / "cropped_aligned/synthetic-0001.part").mkdir()
    kept = [root / "batch1/synthetic-0000.mp4", root / "cropped_aligned/synthetic-0002/00001.jpg"]
    before = [path.stat().st_mtime_ns for path in kept]
    make_synthetic(root, **SETTINGS)
    assert hashes(root) == hashes(corpus)
    assert [path.stat().st_mtime_ns for path in kept] == before


@pytest.mark.parametrize("change", [{"seed": 10}, {"seconds": 4.0}, {"fps": 25}, {"num_train": 3}])
def test_other_settings_are_refused(corpus, change):
    before = hashes(corpus)
    ((name, value),) = change.items()
    message = f"{name}={SETTINGS[name]}, but {name}={value} was asked for.*delete"
    with pytest.raises(ValueError, match=message) as error:
        make_synthetic(corpus, **{**SETTINGS, **change})
    assert str(corpus) in str(error.value)
    assert hashes(corpus) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="other files"):
        make_synthetic(tmp_path, **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_stretches_have_their_length_and_share():
    all_latents = [latents(1, index) for index in range(40)]
    for name in ("video_fault", "audio_fault"):
        faults = [getattr(truth, name) for truth in all_latents]
        assert np.mean([f > 0 for f in faults]) == pytest.approx(0.25, abs=0.05)
        for fault in faults:
            edges = np.flatnonzero(np.diff(fault, prepend=0, append=0))
            lengths = np.diff(edges)[fault[edges[:-1]] > 0] / 30
            assert all(1.4 < length < 5.1 for length in (lengths[:-1] if fault[-1] else lengths))
    assert np.mean([truth.annotated for truth in all_latents]) == pytest.approx(0.98, abs=0.01)
    for name in ("valence", "arousal"):
        spread = np.histogram([getattr(truth, name) for truth in all_latents], 4, (-1, 1))[0] / (40 * 960)
        assert spread.min() > 0.15
        assert spread.sum() == pytest.approx(1)


# Signals ----------------------------------------------------------------------------------------------------

FPS = 5  # the same series in fewer pictures


def rendered(index: int) -> dict[str, np.ndarray]:
    """Latents of a video and what plain measurements find in its pictures and sound, `(frames,)` each."""
    truth = latents(SEED, index, 32.0, FPS)
    _, looks, sounds, moves = synthetic._generators(SEED, index)
    subject = synthetic.draw_subject(looks)
    waveform, loudness = synthetic.speak(subject, truth, FPS, sounds)
    frames = np.stack(list(synthetic.film(subject, truth, loudness, FPS, moves)))[:, :, LEFT : LEFT + CROP]
    blocks = waveform.reshape(len(frames), -1)
    face = synthetic.express(subject, truth, loudness, FPS, synthetic._generators(SEED, index)[3])
    return {
        **{name: getattr(truth, name) for name in ("valence", "arousal")},
        **{name: face[name] for name in ("brow", "lid", "open")},
        # a card or the edge of the picture comes before the stretch and goes after it
        "video_spoilt": np.convolve(truth.video_spoilt, np.ones(5), "same") > 0,
        "audio_spoilt": truth.audio_spoilt,
        "decibel": 10 * np.log10((blocks**2).mean(1) + 1e-12),
        "pitch": np.array([pitch(block) for block in blocks]),
        "curvature": np.array([curvature(frame.astype(int)) for frame in frames]),
    }


def pitch(block: np.ndarray) -> float:
    """log2 of the strongest period's frequency (Hz) between 70 and 500 Hz."""
    correlation = np.fft.irfft(abs(np.fft.rfft(block * np.hanning(len(block)), 2 * len(block))) ** 2)
    lags = np.arange(SAMPLING_RATE // 500, SAMPLING_RATE // 70)
    return np.log2(SAMPLING_RATE / lags[correlation[lags].argmax()])


def curvature(crop: np.ndarray) -> float:
    """How the lips (redder than the skin) are bent, upwards positive: square term of a parabola."""
    redness = (crop[72:102, 36:76, 0] - crop[72:102, 36:76, 1]).astype(float)
    row, column = np.nonzero(redness > np.median(redness) + 12)
    return -100 * np.polyfit(column - column.mean(), row, 2)[0] if len(row) > 9 else 0.0


@pytest.fixture(scope="module")
def measured() -> dict[str, np.ndarray]:
    """`(videos, frames)` each."""
    videos = [rendered(index) for index in range(8)]
    return {name: np.stack([video[name] for video in videos]) for name in videos[0]}


def correlation(x: np.ndarray, y: np.ndarray, use: np.ndarray) -> float:
    """Of all videos, each compared with its own mean: the expression, not the person."""
    videos = [(a[u] - a[u].mean(), b[u] - b[u].mean()) for a, b, u in zip(x, y, use, strict=True)]
    return np.corrcoef(np.concatenate(videos, axis=1))[0, 1]


def test_voice_carries_arousal_and_face_valence(measured):
    heard = ~measured["audio_spoilt"] & (measured["decibel"] > -45)  # not between the phrases
    seen = ~measured["video_spoilt"]
    for name, well, other, use in (
        ("decibel", "arousal", "valence", heard),
        ("pitch", "arousal", "valence", heard),
        ("curvature", "valence", "arousal", seen),
    ):
        found, truth = measured[name], measured[well]
        assert correlation(found, truth, use) > 0.7
        assert abs(correlation(found, measured[other], use)) < 0.35
        late = 2 * FPS  # frames
        assert correlation(np.roll(found, late, 1), truth, np.roll(use, late, 1)) < 0.5
        assert abs(correlation(np.roll(found, 1, 0), truth, np.roll(use, 1, 0))) < 0.35  # another video's
    assert abs(correlation(measured["decibel"], measured["arousal"], measured["audio_spoilt"])) < 0.35


def test_face_carries_arousal_weakly_and_the_mouth_opens_with_the_voice(measured):
    everywhere = np.ones_like(measured["video_spoilt"])
    for name in ("brow", "lid"):
        assert 0.1 < correlation(measured[name], measured["arousal"], everywhere) < 0.6
    assert correlation(measured["open"], measured["decibel"], ~measured["audio_spoilt"]) > 0.6


def test_subjects_differ():
    subjects = [synthetic.draw_subject(synthetic._generators(SEED, index)[1]) for index in range(20)]
    for name in ("pitch", "eye_u", "mouth_offset", "brow_offset", "light", "scale", "hair_length"):
        assert len({getattr(subject, name) for subject in subjects}) > 5
    assert np.std([subject.skin.mean() for subject in subjects]) > 15
