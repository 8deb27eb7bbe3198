"""Tracks: clips that overlap share their frames, in encoders, windows, features, the pipeline and training."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_VIDEO, tiny_model, tiny_processor
from release import write_release
from test_encoders import TINY_RESNET, every_encoder, tiny_encoder
from test_transformers_encoders import encoder_config
from transformers import AutoModel, pipeline

import jca
from encoders_jca import encode, encode_track, reads_tracks
from jca import R2Plus1DConfig, R2Plus1DModel
from jca.affwild2 import load_affwild2
from jca.features import extract_features
from jca.preparation import load_prepared, prepare, video_windows
from jca.recipes import load_recipe
from jca.training import train_encoder


PICTURES = {"model_type": "resnet", **TINY_RESNET}
TRACKS = {**TINY_VIDEO, "tracks": True}


def frames(count, size=20, batch=2, seed=0):
    return torch.randn(batch, count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def places(count, length, stride, hop, batch=2):
    """Where the frames of the clips of a track of `count` frames are, `(batch, clips, length)`."""
    firsts = torch.arange(0, count - (length - 1) * stride, hop)
    return (firsts[:, None] + stride * torch.arange(length)).expand(batch, -1, -1)


def encode_all(encoder, track, stride, hop, mask=None):
    """All clips of 8 frames of a track."""
    mask = torch.ones(track.shape[:2]) if mask is None else mask
    return encode_track(encoder, track, mask, places(track.shape[1], 8, stride, hop, len(track)), (8, stride, hop))


def cut(track, length, stride, hop):
    """The clips of a track, `(batch, clips, length, ...)`."""
    firsts = range(0, track.shape[1] - (length - 1) * stride, hop)
    return torch.stack([track[:, first : first + (length - 1) * stride + 1 : stride] for first in firsts], dim=1)


# Encoders -------------------------------------------------------------------------------------------------------------


@every_encoder
@torch.no_grad()
def test_a_clip_that_is_a_track_has_the_features_of_the_clip(name):
    encoder, clip = tiny_encoder(name), frames(8)
    encoder.config.tracks = name != "resnet_gru"
    track = encode_all(encoder, clip, 1, 8)
    torch.testing.assert_close(track[:, 0], encoder(clip).pooler_output)


@every_encoder
@torch.no_grad()
def test_every_hop_gives_the_same_clips(name):
    """The clips that two hops have in common are the same, also where frames of a clip are several frames apart."""
    encoder = tiny_encoder(name)
    encoder.config.tracks = name != "resnet_gru"
    track = frames(52, batch=1)
    dense = encode_all(encoder, track, 1, 1)
    assert dense.shape[1] == 45
    for hop in (2, 4, 8):  # the last ones see where the track ends
        got = encode_all(encoder, track, 1, hop)
        torch.testing.assert_close(got[:, : -16 // hop], dense[:, ::hop][:, : -16 // hop], atol=1e-4, rtol=1e-4)
    apart = encode_all(encoder, track, 4, 1)
    assert apart.shape[1] == 24
    for first in range(4):
        alone = encode_all(encoder, track[:, first::4], 1, 1)
        torch.testing.assert_close(apart[:, first::4], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_far_from_the_ends_a_stage_is_at_every_phase():
    """Where the ends of the track are out of reach, the features of a clip do not depend on where the track began: each is
    that of the network with all its strides on the track that begins with the clip's phase."""
    torch.manual_seed(0)
    encoder = (
        jca.R2Plus1DModel(jca.R2Plus1DConfig(stem_size=3, hidden_sizes=[3, 4, 5], depths=[1, 1, 1])).eval().double()
    )
    track = frames(120, size=8, batch=1).double()
    dense = encoder.forward_track(track, 8, 1)
    for phase in (1, 2, 3):
        strided = encoder.forward_track(track[:, phase:], 8, 4)  # no stage is shifted
        torch.testing.assert_close(strided[:, 10:-10], dense[:, phase::4][:, 10 : strided.shape[1] - 10])
    assert (dense[:, 40:60] - encode(encoder, cut(track, 8, 1, 1))[:, 40:60]).abs().max() > 0.01  # neighbours are seen


@pytest.mark.parametrize("config", [PICTURES, encoder_config("vit").to_dict(), {"model_type": "resnet_gru"}])
@torch.no_grad()
def test_encoders_of_frames_lose_nothing(config):
    if config["model_type"] == "resnet_gru":
        config = {**config, "resnet_config": PICTURES, "hidden_size": 6}
    model = tiny_model(video_config=config)
    assert model.reads_tracks
    size = config.get("image_size", 20)
    track, everything = frames(40, size), torch.ones(2, 40)
    for stride, hop in ((1, 2), (4, 1), (2, 3)):
        features = model.get_track_features(track, everything, places(40, 8, stride, hop), (8, stride, hop))
        torch.testing.assert_close(features, model.get_video_features(cut(track, 8, stride, hop)), atol=1e-5, rtol=1e-4)
    # frames may stand anywhere, and those without a face be anything
    mask, clips = everything.clone(), torch.randint(9, 40, (2, 5, 8))
    mask[:, 3:9], track[:, 3:9], clips[1, 2] = 0, torch.nan, -1
    features = model.get_track_features(track, mask, clips, (8, 1, 2))
    expected = model.get_video_features(torch.stack([track[b, clips[b].clamp(min=9)] for b in range(2)]))
    assert not features[1, 2].any()
    expected[1, 2] = 0
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_each_frame_is_encoded_once():
    model, seen = tiny_model(video_config=PICTURES), []
    model.video_encoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    model.get_track_features(frames(40), torch.ones(2, 40), places(40, 8, 1, 2), (8, 1, 2))
    assert sum(seen) == 80


def test_windows_without_a_face_leave_batch_normalisation_alone():
    clips, mask = cut(frames(64), 8, 1, 8), torch.ones(2, 8)
    mask[1] = 0
    both, one = (tiny_model(video_config=TRACKS).train() for _ in range(2))
    features = both.get_video_features(clips, mask)
    torch.testing.assert_close(features[:1], one.get_video_features(clips[:1], mask[:1]))
    assert not features[1].any()
    both.get_video_features(clips, torch.zeros(2, 8))
    for (name, buffer), other in zip(both.named_buffers(), one.buffers(), strict=True):
        assert torch.equal(buffer, other), name
    features.sum().backward()
    assert all(p.grad is not None for p in both.video_encoder.parameters())


def test_tracks_that_can_not_be_are_refused(video):
    with pytest.raises(ValueError, match="'videomae' can not"):
        tiny_model(video_config={**encoder_config("videomae").to_dict(), "tracks": True})
    with pytest.raises(ValueError, match="Clips have 4 frames, and tracks need a multiple of 8"):
        R2Plus1DModel(R2Plus1DConfig(tracks=True)).forward_track(frames(8), 4, 4)
    with pytest.raises(ValueError, match="Clips have one frame, and tracks need two"):
        tiny_encoder("i3d").forward_track(frames(8), 1, 1)
    with pytest.raises(ValueError, match="live=True gives clips one by one"):
        next(tiny_processor().windows(video, live=True, tracks=True))


@torch.no_grad()
def test_a_window_is_a_track_where_the_configuration_says_so():
    model = tiny_model(video_config=TRACKS)
    clips = cut(frames(64), 8, 1, 8)
    mask = torch.ones(2, 8)
    mask[1, 3] = 0
    features = model.get_video_features(clips, mask)
    shown = mask.repeat_interleave(8, dim=1)
    expected = model.get_track_features(frames(64), shown, places(64, 8, 1, 8), (8, 1, 8))
    assert not features[1, 3].any()
    torch.testing.assert_close(features[mask != 0], expected[mask != 0])
    alone = tiny_model(video_config=TINY_VIDEO).get_video_features(clips)
    torch.testing.assert_close(model.get_video_features(clips[:, :1]), alone[:, :1])
    assert (model.get_video_features(clips) - alone)[:, 1:].abs().max() > 1e-3
    assert not tiny_model(video_config=TINY_VIDEO).reads_tracks
    assert not tiny_model(modalities=["audio"], fusion="concat").reads_tracks
    assert reads_tracks(tiny_encoder("resnet_gru"))


# Windows, features, pipeline ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hop", [1, 2, 8, 32])
def test_a_track_holds_the_clips_of_the_windows(video, hop):
    processor = tiny_processor()
    clips, rows = {}, []
    for window in processor.windows(video, hop=hop):
        rows += window["rows"]
        for index, end in enumerate(window["end_frames"].tolist()):
            clips[end] = {name: window[name][index] for name in ("crops", "waveforms", "video_mask", "audio_mask")}
    _, stride, step = processor.track_sizes(hop)
    seen = 0
    for track in processor.windows(video, hop=hop, tracks=True):
        rows = rows[len(track["rows"]) :] if rows[: len(track["rows"])] == track["rows"] else None
        grid = (len(track["end_frames"]) - 1) * step + 7 * stride + 1
        assert len(track["frame_mask"]) == len(track["crops"]) == grid + 32
        for index, end in enumerate(track["end_frames"].tolist()):
            if end not in clips:  # beyond the end of the video
                assert not track["video_mask"][index]
                continue
            for name in ("waveforms", "video_mask", "audio_mask"):
                np.testing.assert_array_equal(track[name][index], clips[end][name])
            if not track["video_mask"][index]:
                assert (track["clip_frames"][index] == -1).all()
                continue
            np.testing.assert_array_equal(track["crops"][track["clip_frames"][index]], clips[end]["crops"])
            if 31 <= end < 600:
                np.testing.assert_array_equal(track["clip_frames"][index], index * step + stride * np.arange(8))
                seen += 1
    assert rows == []
    assert seen == sum(31 <= end < 600 for end in clips)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    def save(name, **changes):
        folder = tmp_path_factory.mktemp(name)
        tiny_model(**changes).save_pretrained(folder)
        tiny_processor().save_pretrained(folder)
        return str(folder)

    return save


def column(rows, name="valence"):
    return np.array([row[name] for row in rows])


@torch.no_grad()
def test_rows_of_an_encoder_of_frames_are_those_of_its_windows(folder_of, video):
    folder = folder_of("pictures", video_config=PICTURES)
    pipe, model, processor = (
        pipeline("audio-visual-emotion", model=folder),
        AutoModel.from_pretrained(folder),
        tiny_processor(),
    )
    rows, checked = pipe(video), 0
    for window in processor.windows(video):
        values = model(**processor.inputs(window)).logits[0]
        for end, (valence, _) in zip(window["end_frames"].tolist(), values.tolist(), strict=True):
            if end < 600:
                assert rows[end]["valence"] == pytest.approx(np.clip(valence, -1, 1), abs=1e-5)
                checked += 1
    assert checked == 75
    np.testing.assert_allclose(column(pipe.stream(video)), column(rows), atol=1e-6)
    for got in pipe([video, video], batch_size=3):
        np.testing.assert_allclose(column(got), column(rows), atol=1e-5)


@torch.no_grad()
def test_rows_of_a_model_of_tracks(folder_of, video):
    pipe = pipeline("audio-visual-emotion", model=folder_of("tracks", video_config=TRACKS))
    model, processor = pipe.model, pipe.processor
    rows = column(pipe(video))
    track = next(processor.windows(video, tracks=True))
    inputs = processor.inputs(track)
    names = ("pixel_values", "frame_mask", "clip_frames")
    features = model.get_track_features(*(inputs[name] for name in names), processor.track_sizes(8))
    for shift in range(4):  # clips that follow each other without overlap are a window
        clips = slice(shift, None, 4)
        masks = {name: inputs[name][:, clips] for name in ("video_mask", "audio_mask")}
        sound = inputs["input_features"][:, clips]
        logits = model(video_features=features[:, clips], input_features=sound, **masks).logits[0]
        np.testing.assert_allclose(rows[track["end_frames"][clips]], logits[:, 0].clamp(-1, 1), atol=1e-5)
    np.testing.assert_allclose(column(pipe.stream(video)), rows, atol=1e-6)
    assert len(list(pipe.stream(video, live=True))) == 600


def test_features_and_training_read_tracks(folder_of, tmp_path):
    write_release(tmp_path / "corpus", {"Train_Set": ["a", "b", "c", "dd"], "Validation_Set": ["x"]})
    splits = {split: load_affwild2(tmp_path / "corpus", split) for split in ("train", "validation")}
    prepare(splits, tmp_path / "prepared", tiny_processor(), num_proc=1)
    content = {
        "data": {"root": str(tmp_path / "prepared"), "hop": 8},
        "output_dir": str(tmp_path / "run"),
        "model": {**TINY, "video_config": TRACKS, "dropout": 0.0},
        "processor": {"video_processor": {"size": 16, "faces": "center"}},
        "video": {"learning_rate": 0.01, "batch_size": 2, "num_epochs": 10},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    folder = train_encoder(load_recipe(tmp_path / "recipe.yaml"), "video")
    best = json.loads((folder / "metrics.json").read_text())["best"]
    assert best["ccc_valence"] > 0.7  # which is in the picture
    model, processor = AutoModel.from_pretrained(folder), tiny_processor()
    (features,) = extract_features(
        load_prepared(tmp_path / "prepared", "validation"), model, processor, 8, tmp_path / "kept"
    )
    (media,) = extract_features(splits["validation"], model, processor, 8, tmp_path / "kept")
    np.testing.assert_allclose(features["video_features"], media["video_features"], atol=1e-2)
    track = next(video_windows(splits["validation"][0], processor, 8, tracks=True))
    inputs = processor.inputs(track)
    names = ("pixel_values", "frame_mask", "clip_frames")
    expected = model.get_track_features(*(inputs[name] for name in names), processor.track_sizes(8))[0]
    got = np.array(features["video_features"])[: len(track["end_frames"])]
    shown = track["video_mask"]
    np.testing.assert_allclose(got[shown], expected.detach().numpy()[shown], atol=1e-2)
