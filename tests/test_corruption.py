import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_processor
from release import write_release

from jca.affwild2 import load_affwild2
from jca.corruption import (
    Corruption,
    add_noise,
    blur_crops,
    corrupt_features,
    corrupt_window,
    curve_table,
    draw_stretches,
    missing_curve,
    parse_corruption,
)
from jca.evaluation import evaluate, predict
from jca.features import extract_features
from jca.windows import WindowDataset


ROOT, HOP = Path(__file__).parents[1], 8
MODALITIES = ("video", "audio")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three videos that were annotated, the third so short that clips end beyond it."""
    folder = write_release(tmp_path_factory.mktemp("release"), {"Validation_Set": ["a", "b"]})
    return write_release(folder, {"Validation_Set": ["c"]}, num_frames=530)


@pytest.fixture(scope="module")
def dataset(root):
    return load_affwild2(root, "validation")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def features(dataset, cache):
    return extract_features(dataset, tiny_model(), tiny_processor(), HOP, cache)


def corrupt(features, *texts, seed=0, recordings=("a", "b", "c")):
    corruptions = [parse_corruption(text, seed) for text in texts]
    return corrupt_features(features, corruptions, tiny_processor(), HOP, recordings)


def columns(features):
    """By name, the array of each row."""
    return {name: list(features.with_format("numpy")[name]) for name in features.column_names}


def runs(flags):
    """Lengths of the stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return edges[1::2] - edges[::2]


def assert_same_but(before, after, *names):
    before, after = columns(before), columns(after)
    assert list(before) == list(after)
    for name in set(before) - set(names):
        for mine, other in zip(before[name], after[name], strict=True):
            np.testing.assert_array_equal(mine, other, err_msg=name)


def test_a_share_is_met_in_stretches():
    ends = np.arange(HOP - 1, 30_000, HOP)
    smaller = np.zeros(len(ends), bool)
    for share in (0, 0.1, 0.3, 0.5, 0.9, 1):
        drawn = draw_stretches(ends, share, 30.0, np.random.default_rng(0))
        assert drawn.sum() == round(share * len(ends))
        assert not (smaller & ~drawn).any()  # a curve goes on with what it had
        smaller = drawn
        if 0 < share < 1:
            assert np.median(runs(drawn)) * HOP / 30 >= 3.9
    drawn = draw_stretches(ends, 0.1, 30.0, np.random.default_rng(0))
    assert np.median(runs(drawn)) * HOP / 30 == pytest.approx(4, abs=0.3)
    assert (draw_stretches(ends, 0.1, 30.0, np.random.default_rng(1)) != drawn).any()
    dense = draw_stretches(np.arange(30_000), 0.1, 30.0, np.random.default_rng(0))
    assert np.median(runs(dense)) / 30 == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("modality", MODALITIES)
def test_missing_changes_the_mask_of_its_modality_alone(features, modality):
    corrupted = corrupt(features, f"{modality}=0.4")
    assert_same_but(features, corrupted, f"{modality}_mask")
    before, after = columns(features), columns(corrupted)
    for ends, times, was, now in zip(
        before["end_frames"], before["times"], before[f"{modality}_mask"], after[f"{modality}_mask"], strict=True
    ):
        inside = ends < len(times)
        assert not (now & ~was).any()
        kept = now[inside][was[inside]].mean()
        assert kept == pytest.approx(0.6, abs=0.05)
    drawn = [was & ~now for was, now in zip(before[f"{modality}_mask"], after[f"{modality}_mask"], strict=True)]
    assert (drawn[0] != drawn[1]).any()  # another video, another stretch
    other = corrupt(features, f"{modality}=0.4", seed=1)
    assert any(
        (x != y).any() for x, y in zip(columns(other)[f"{modality}_mask"], after[f"{modality}_mask"], strict=True)
    )


def test_two_models_miss_the_same(dataset, features, tmp_path):
    model = tiny_model(seed=1, modalities=["audio"], fusion="concat")
    theirs = extract_features(
        dataset, model, tiny_processor(), HOP, tmp_path, corruptions=[Corruption("audio", "missing", 0.5)]
    )
    ours = columns(corrupt(features, "audio=0.5"))["audio_mask"]
    for mine, other in zip(ours, columns(theirs)["audio_mask"], strict=True):
        np.testing.assert_array_equal(mine, other)
    with pytest.raises(ValueError, match=r"'video:missing=0\.5' is not possible: the model reads audio alone"):
        extract_features(
            dataset, model, tiny_processor(), HOP, tmp_path, corruptions=[Corruption("video", "missing", 0.5)]
        )


@torch.no_grad()
def test_without_any_sound_a_model_predicts_as_with_its_mask_at_0(features):
    model, processor = tiny_model(), tiny_processor()
    corrupted = corrupt(features, "audio=1")
    assert not any(mask.any() for mask in columns(corrupted)["audio_mask"])
    windows, silent = WindowDataset(features, processor, HOP), WindowDataset(corrupted, processor, HOP)
    assert len(windows) == len(silent)
    for window, item in zip(windows, silent, strict=True):
        inputs = {name: x[None] for name, x in window.items() if name != "labels"}
        expected = model(**{**inputs, "audio_mask": torch.zeros_like(inputs["audio_mask"])}).logits
        ours = model(**{name: x[None] for name, x in item.items() if name != "labels"}).logits
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)
        assert not torch.equal(ours, model(**inputs).logits)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_wrong_track_is_of_another_recording_at_the_same_time(features, modality):
    name, mask = f"{modality}_features", f"{modality}_mask"
    corrupted = corrupt(features, f"{modality}:wrong=0.5", recordings=("one", "one", "two"))
    assert_same_but(features, corrupted, name, mask)
    before, after = columns(features), columns(corrupted)
    for row in range(3):
        changed = (before[name][row] != after[name][row]).any(axis=1)
        inside = before["end_frames"][row] < len(before["times"][row])
        assert changed[inside].mean() == pytest.approx(0.5, abs=0.08)  # a clip may be like the one in its place
        others = (2,) if row < 2 else (0, 1)  # two subjects of a recording have its sound in common
        candidates = []
        for other in others:
            length = (before["end_frames"][other] < len(before["times"][other])).sum()
            position = (before["end_frames"][row] // HOP) % length
            same = (after[name][row] == before[name][other][position]).all(axis=1)
            masked = after[mask][row] == (before[mask][row] & before[mask][other][position])
            candidates.append(same[changed].all() and masked[changed].all())
        assert any(candidates)
    with pytest.raises(ValueError, match=f"no other recording has {modality}"):
        corrupt(features, f"{modality}:wrong=0.5", recordings=("one", "one", "one"))


@pytest.mark.parametrize("frames", [24, 240, -16, 0, 3000])
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_shift_is_by_frames(features, modality, frames):
    corrupted = corrupt(features, f"{modality}:shift={frames / 30}")
    assert_same_but(features, corrupted, f"{modality}_features", f"{modality}_mask")
    before, after = columns(features), columns(corrupted)
    for row, ends in enumerate(before["end_frames"]):
        index = {end: position for position, end in enumerate(ends)}
        clips, masks = (f"{modality}_{part}" for part in ("features", "mask"))
        for position, end in enumerate(ends):
            if end - frames in index:
                source = index[end - frames]
                np.testing.assert_array_equal(after[clips][row][position], before[clips][row][source])
                assert after[masks][row][position] == before[masks][row][source]
            else:  # before the start
                assert not after[masks][row][position]
    if frames == 24:
        assert [mask[:4].tolist() for mask in after[masks]] == [[False, False, False, True]] * 3


def test_a_shift_between_two_clips_is_refused(features):
    with pytest.raises(ValueError, match=r"it is 30 frames, and there is a clip at every 8th\. Give 0\.8 or 1\.067"):
        corrupt(features, "audio:shift=1")
    assert corrupt(features, "audio:shift=1.067") is not None
    assert corrupt(features, "audio:shift=0.8") is not None


@pytest.fixture(scope="module")
def window(dataset):
    row = dataset[0]
    return next(tiny_processor().windows(row["media_path"], crops_dir=row["crops_dir"]))


def decibels(signal, noise):
    return 10 * np.log10(np.mean(np.square(signal, dtype=np.float64)) / np.mean(np.square(noise, dtype=np.float64)))


@pytest.mark.parametrize("ratio", [20, 0, -5])
@pytest.mark.parametrize(("modality", "name"), [("audio", "waveforms"), ("video", "crops")])
def test_noise_is_at_the_ratio_asked_for(window, modality, name, ratio):
    noisy = corrupt_window(window, [Corruption(modality, "noise", ratio)], "a")
    for other in set(window) - {name}:
        assert noisy[other] is window[other]
    noise = noisy[name] - window[name].astype(np.float32)
    present = window[f"{modality}_mask"]
    assert present.sum() >= 15
    for signal, own in zip(window[name][present], noise[present], strict=True):
        assert decibels(signal, own) == pytest.approx(ratio, abs=0.5)
    flat = noise[present].reshape(present.sum(), -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    assert np.abs(flat @ flat.T - np.eye(len(flat))).max() < 0.1  # of each clip its own
    assert abs((flat[:, 1:] * flat[:, :-1]).sum(axis=1)).max() < 0.1  # white
    same = corrupt_window(window, [Corruption(modality, "noise", ratio)], "a")
    np.testing.assert_array_equal(same[name], noisy[name])
    for other in (("b", 0), ("a", 1)):
        again = corrupt_window(window, [Corruption(modality, "noise", ratio, other[1])], other[0])
        assert (again[name][present] != noisy[name][present]).any()


def test_silence_stays_silent():
    assert not add_noise(np.zeros(100), 0, np.random.default_rng(0)).any()


def test_a_blur_is_a_gaussian_of_a_share_of_the_crop():
    crops = np.random.default_rng(0).integers(0, 256, (2, 3, 112, 112, 3), dtype=np.uint8)
    blurred = blur_crops(crops, 2.0)
    np.testing.assert_allclose(blurred.mean(axis=(2, 3)), crops.mean(axis=(2, 3)), rtol=1e-5)

    def fast(pictures):
        spectrum = np.abs(np.fft.fft2(pictures, axes=(2, 3))) ** 2
        return spectrum[:, :, 28:85, 28:85].sum()

    assert fast(blurred) < 1e-3 * fast(crops)
    point = np.zeros((1, 41, 41, 3), np.uint8)
    point[:, 20, 20] = 255
    spread = blur_crops(point, 3.0)[0, :, :, 0] / 255
    distance = np.arange(41) - 20
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    for axis in (0, 1):
        assert (spread.sum(axis=axis) * distance**2).sum() == pytest.approx(9, rel=0.01)
    # pixels are those of a crop of 112
    small = {"crops": point[None], "end_frames": np.array([7])}
    out = corrupt_window(small, [Corruption("video", "blur", 3.0 * 112 / 41)], "a")["crops"]
    np.testing.assert_allclose(out[0, 0, :, :, 0] / 255, spread, atol=1e-6)


def test_noisy_features_have_files_of_their_own(dataset, features, cache):
    model, processor = tiny_model(), tiny_processor()

    def extract(*texts, **options):
        corruptions = [parse_corruption(text) for text in texts]
        return extract_features(dataset, model, processor, HOP, cache, corruptions=corruptions, **options)

    def folders():
        return {path.name for path in cache.iterdir()}

    clean = folders()
    assert len(clean) == 1
    missing = extract("video=0.5", "audio:wrong=0.5", "audio:shift=0.8")
    assert folders() == clean  # nothing is encoded again
    noisy = extract("audio:noise=0", "video=0.5")
    (first,) = folders() - clean
    assert_same_but(missing, noisy, "audio_features", "audio_mask")
    assert (columns(noisy)["audio_features"][0] != columns(features)["audio_features"][0]).any()
    extract("audio:noise=0")
    assert folders() == clean | {first}
    grainy = extract("video:noise=10", num_workers=1)
    extract("video:noise=10", "video:blur=2")
    assert len(folders()) == 4
    assert (columns(grainy)["video_features"][0] != columns(features)["video_features"][0]).any()
    assert_same_but(features, grainy, "video_features")
    assert_same_but(features, extract())
    scores = {evaluate(model, rows, processor, HOP)["ccc"] for rows in (features, missing, noisy, grainy)}
    assert len(scores) == 4
    for values, times in zip(predict(model, noisy, processor, HOP), noisy["times"], strict=True):
        assert values.shape == (len(times), 2)
        assert np.isfinite(values).all()


def test_a_curve_goes_from_all_to_nothing(features):
    model, processor = tiny_model(), tiny_processor()
    curves = {
        modality: missing_curve(model, features, processor, HOP, modality, (0, 0.5, 1)) for modality in MODALITIES
    }
    whole = evaluate(model, features, processor, HOP)
    for modality, (first, middle, last) in curves.items():
        assert first == {"share": 0, **whole}
        assert middle["ccc"] not in (first["ccc"], last["ccc"])
        assert last == {"share": 1, **evaluate(model, corrupt(features, f"{modality}=1"), processor, HOP)}
    head, _, *lines = curve_table(curves).splitlines()
    assert head.count("|") == 8
    assert head.startswith("| missing | valence without video | arousal without video | mean without video | valence")
    assert len(lines) == 3
    assert lines[1].startswith(f"| 50% | {curves['video'][1]['ccc_valence']:.3f} |")
    assert lines[2].endswith(f" | {curves['audio'][2]['ccc']:.3f} |")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sound=1", "'sound:missing=1.0' is not possible: 'sound' is no modality. Choose one of audio, video."),
        ("audio=2", "'audio:missing=2.0' is not possible: missing must be a share of clips from 0 to 1."),
        ("audio=nan", "missing must be a share of clips from 0 to 1"),
        ("video:wrong=-0.1", "wrong must be a share of clips from 0 to 1"),
        ("video:echo=1", "video has no 'echo'. Choose one of missing, wrong, shift, noise, blur."),
        ("audio:blur=1", "audio has no 'blur'. Choose one of missing, wrong, shift, noise."),
        ("video:blur=-1", "a standard deviation in pixels of a 112-pixel crop, 0 or more"),
        ("audio:noise=loud", "'audio:noise=loud' is not possible: 'loud' is no number. Write MODALITY=SHARE or"),
        ("audio:noise=inf", "noise must be a signal-to-noise ratio in dB"),
        ("audio", "'' is no number. Write MODALITY=SHARE"),
    ],
)
def test_what_is_no_corruption_is_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_corruption(text)


def test_a_corruption_is_read_as_it_is_written():
    assert parse_corruption("audio=0.5") == Corruption("audio", "missing", 0.5)
    for text in ("audio=0.5", "video:blur=2", "audio:shift=-0.8", "audio:noise=-3.25"):
        assert parse_corruption(str(parse_corruption(text, 3)), 3) == parse_corruption(text, 3)


def script(name, *arguments):
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_scripts(model_folder, root, tmp_path):
    cache = ["--cache", tmp_path / "cache"]
    options = ["--corrupt", "audio=1", "--corrupt", "video:noise=10", "--seed", 2, "--output", tmp_path / "a.json"]
    run = script("evaluate.py", model_folder, root, *cache, *options)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "corrupted: audio:missing=1.0, video:noise=10.0; seed 2" in run.stdout
    assert json.loads((tmp_path / "a.json").read_text())["corruptions"] == [
        {"modality": "audio", "kind": "missing", "amount": 1.0, "seed": 2},
        {"modality": "video", "kind": "noise", "amount": 10.0, "seed": 2},
    ]
    for bad, message in (("sound=1", "'sound' is no modality"), ("audio:shift=1", "Give 0.8 or 1.067")):
        run = script("evaluate.py", model_folder, root, *cache, "--corrupt", bad)
        assert run.returncode != 0
        assert message in run.stderr
        assert "Traceback" not in run.stderr
    run = script("robustness.py", model_folder, root, tmp_path / "out", *cache, "--video_alone", tmp_path / "a.json")
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads((tmp_path / "out/robustness.json").read_text())
    assert [point["share"] for point in found["curves"]["audio"]] == [0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1]
    assert f"| 100% | {found['curves']['video'][-1]['ccc_valence']:.3f} |" in run.stdout
    assert (tmp_path / "out/robustness.md").read_text() == run.stdout
    assert (tmp_path / "out/robustness.png").read_bytes().startswith(b"\x89PNG")
    run = script("robustness.py", model_folder, root, tmp_path, "--audio_alone", tmp_path / "gone.json")
    assert run.returncode == 2
    assert "gone.json' holds no CCC" in run.stderr
