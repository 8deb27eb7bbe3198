import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_processor
from media import clapping_video
from release import write_release
from transformers import pipeline

import jca
from jca.affwild2 import load_affwild2
from jca.corpus import CorpusError, make_dataset, make_row
from jca.evaluation import evaluate, predict
from jca.features import describe_features, encode_window, extract_features, fingerprint
from jca.preparation import load_prepared, prepare, source_key


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release"), {"Train_Set": ["a", "b"], "Validation_Set": ["c"]})


@torch.no_grad()
def test_evaluation_is_what_the_pipeline_serves(model_folder, video, silent_video, tmp_path):
    """Over kept features as over media: the same windows, the same timeline."""
    model, processor = jca.JCAModel.from_pretrained(model_folder), jca.JCAProcessor.from_pretrained(model_folder)
    slow = clapping_video(tmp_path / "slow.mp4", seconds=19, claps=(2,), fps=25)
    media = [video, silent_video, slow]
    labels = [np.full((count, 2), 0.5, np.float32) for count in (600, 40, 475)]
    rows = [make_row(str(i), path, y, 30) for i, (path, y) in enumerate(zip(media, labels, strict=True))]
    dataset = make_dataset(rows, [], "made", "raise")
    features = extract_features(dataset, model, processor, 8, tmp_path)
    pipe = pipeline("audio-visual-emotion", model=model_folder)
    for path, values in zip(
        media, predict(model, features, processor, 8, smoothing="paper", batch_size=3), strict=True
    ):
        rows = pipe(path, hop=8, smoothing="paper")
        assert len(rows) == len(values)
        served = np.array([[row["valence"], row["arousal"]] for row in rows])
        np.testing.assert_allclose(values, served, atol=3e-3)  # features are kept in float16
    assert evaluate(model, features, processor, 8)["frames"] == 600 + 40 + 475
    half = jca.JCAModel.from_pretrained(model_folder, dtype=torch.bfloat16)
    features = extract_features(dataset.select([1]), half, processor, 8, tmp_path)
    assert np.isfinite(predict(half, features, processor, 8)[0]).all()


def test_features_are_computed_once_and_never_stale(root, tmp_path, monkeypatch):
    dataset, processor, model = load_affwild2(root, "validation"), tiny_processor(), tiny_model()
    first = extract_features(dataset, model, processor, 8, tmp_path)
    calls = []
    monkeypatch.setattr(jca.JCAProcessor, "windows", lambda *a, **k: calls.append(a) or iter(()))
    again = extract_features(dataset, model, processor, 8, tmp_path)
    assert not calls
    np.testing.assert_array_equal(first["video_features"], again["video_features"])

    def name(model=model, processor=processor, hop=8, precision="no"):
        return fingerprint(describe_features(model, processor, hop, precision))

    prints = [
        name(),
        name(hop=4),
        name(processor=tiny_processor(faces="given")),
        name(model=tiny_model(seed=1)),
        name(precision="bf16"),
        name(model=tiny_model().bfloat16()),
    ]
    assert len(set(prints)) == len(prints)
    other_head = tiny_model(fusion="concat")
    for modality in ("video", "audio"):
        encoder = getattr(model, f"{modality}_encoder").state_dict()
        getattr(other_head, f"{modality}_encoder").load_state_dict(encoder)
    assert name(model=other_head) == name()  # the fusion has no part in it


def test_a_row_that_changed_is_encoded_again_and_no_other(root, tmp_path):
    row = load_affwild2(root, "validation")[0]
    before = source_key(row)
    assert source_key({**row, "valence": row["valence"] + 0.1}) != before
    media, crops = Path(row["media_path"]), Path(row["crops_dir"])
    stat = media.stat()
    os.utime(media, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    changed = source_key(row)
    assert changed != before
    spare = crops / "00001.jpg"
    spare.rename(tmp_path / "kept.jpg")
    assert source_key(row) != changed
    (tmp_path / "kept.jpg").rename(spare)


def test_of_prepared_files_as_of_the_release(root, tmp_path):
    """Bit for bit: the prepared folder holds all that the release says about a clip."""
    processor, model, release = tiny_processor(), tiny_model(), load_affwild2(root, "train")
    prepare({"train": release}, tmp_path / "prepared", processor)
    ours = extract_features(load_prepared(tmp_path / "prepared", "train"), model, processor, 8, tmp_path)
    theirs = extract_features(release, model, processor, 8, tmp_path)
    assert ours.column_names == theirs.column_names
    for mine, other in zip(ours.with_format("numpy"), theirs.with_format("numpy"), strict=True):
        for name in ours.column_names:
            np.testing.assert_array_equal(mine[name], other[name])
    assert not ours.with_format("numpy")[0]["video_mask"].all()  # a stretch without a face is longer than a clip
    assert ours.with_format("numpy")[0]["labels"].shape == (640, 2)


def test_what_is_found_on_the_way_is_reported_when_the_rest_is_done(root, tmp_path):
    rows = list(load_affwild2(root, "train"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/00009.jpg").write_bytes(b"\xff\xd8 no picture")
    bad = [{**rows[0], "video_id": "bad", "crops_dir": str(tmp_path / "broken")}]
    (tmp_path / "text.mp4").write_text("no media")
    gone = [{**rows[0], "video_id": "gone", "media_path": str(tmp_path / "text.mp4")}]
    dataset = make_dataset([*bad, *gone, rows[1]], [], "made", "raise")
    with pytest.raises(CorpusError) as error:
        extract_features(dataset, tiny_model(), tiny_processor(), 8, tmp_path / "cache")
    picture, media = error.value.problems
    assert "00009.jpg' can not be read as a picture (Invalid data found" in picture
    assert "text.mp4' can not be opened as media" in media
    assert len(list((tmp_path / "cache").glob("*/b-*.arrow"))) == 1  # the good one is kept
    assert not list((tmp_path / "cache").glob("*/bad-*.arrow"))


def test_features_that_are_no_numbers_are_refused(root):
    model = tiny_model()
    torch.nn.init.constant_(next(model.video_encoder.parameters()), float("nan"))
    processor = tiny_processor()
    row = load_affwild2(root, "validation")[0]
    window = next(processor.windows(row["media_path"], crops_dir=row["crops_dir"]))
    with pytest.raises(ValueError, match="the video encoder makes features that are no numbers"):
        encode_window(model, processor.inputs(window), processor.track_sizes(8))


def contents(cache):
    return {str(path.relative_to(cache)): path.read_bytes() for path in sorted(cache.rglob("*.*"))}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Videos of several lengths."""
    folder = tmp_path_factory.mktemp("lengths")
    for index, length in enumerate((90, 400, 200, 650, 60, 300)):
        write_release(folder, {"Train_Set": [f"video{index}"]}, length)
    return folder


def extract(corpus, model_folder, cache):
    model, processor = jca.JCAModel.from_pretrained(model_folder), jca.JCAProcessor.from_pretrained(model_folder)
    return extract_features(load_affwild2(corpus, "train"), model, processor, 8, cache)


@pytest.fixture(scope="module")
def whole(corpus, model_folder, tmp_path_factory):
    """The cache made in one go by one process."""
    cache = tmp_path_factory.mktemp("whole")
    assert len(extract(corpus, model_folder, cache)) == 6
    return contents(cache)


def test_killed_at_any_moment_it_ends_with_the_same_files(corpus, model_folder, whole, tmp_path):
    rng, rounds = np.random.default_rng(0), []
    # processes without the seconds of their imports, forked off one that has no threads of other tests
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["conftest", "jca.features", "jca.affwild2"])
    for _ in range(10):
        process = context.Process(target=extract, args=(corpus, model_folder, tmp_path))
        process.start()
        while process.is_alive() and not list(tmp_path.glob("*/about.json")):
            time.sleep(0.005)  # until it works
        time.sleep(rng.uniform(0, 0.25))
        process.kill()
        process.join()
        rounds.append((process.exitcode, len(list(tmp_path.glob("*/*.arrow")))))
    assert -signal.SIGKILL in dict(rounds)
    assert rounds[0][1] < 6  # not all was done before the first
    extract(corpus, model_folder, tmp_path)
    assert {name: data for name, data in contents(tmp_path).items() if not name.endswith(".part")} == whole


@pytest.mark.slow
def test_two_processes_and_workers_make_the_same_files(corpus, model_folder, whole, tmp_path):
    script = Path(__file__).parents[1] / "scripts/extract_features.py"
    # Accelerate's launcher starts one process on a CPU, PyTorch's as many as are asked for
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    arguments = [model_folder, str(corpus), str(tmp_path), "--split=train", "--num_workers=1"]
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1]), "ACCELERATE_USE_CPU": "true"}
    run = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("train: 6 videos") == 1
    assert contents(tmp_path) == whole
