import http.server
import json
import pickle
import threading
import zlib
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import tiny_processor
from media import CLAPPING, clapping_video, write_sound, write_video
from safetensors.numpy import load_file
from transformers import AutoProcessor

import jca
from media_jca import Waveform
from processing_jca import clip_frames, window_plan


GOLDEN = Path(__file__).parent / "golden"


# Clips and windows ----------------------------------------------------------------------------------------------------


def test_windows_are_the_authors():
    golden = json.loads((GOLDEN / "authors_window_plan.json").read_text())["complete"]
    length = golden["length"]

    def frames(end):  # golden frames count from 1
        return [g + 1 for g in clip_frames(range(max(end - 31, 0), min(end + 1, length)))]

    evaluation = [[{"end": end + 1, "frames": frames(end)} for end in ends] for ends in window_plan(length)]
    assert evaluation == golden["eval_windows"]
    training = [[frames(end) for end in ends] for ends in window_plan(length, complete=True)]
    assert training == golden["train_windows"]


@pytest.mark.parametrize("hop", [1, 2, 8, 32])
@pytest.mark.parametrize("num_frames", [1, 7, 8, 31, 512, 513, 700, 1100])
def test_every_hop_has_one_clip(hop, num_frames):
    ends = [end for window in window_plan(num_frames, hop) for end in window]
    assert len(ends) == len(set(ends))
    assert set(range(hop - 1, num_frames + hop - 1, hop)) <= set(ends)


@pytest.mark.parametrize("hop", [0, 3, 64, 2.0, "8"])
def test_wrong_hop_names_the_choices(hop):
    with pytest.raises(ValueError, match=r"must divide 32\. Choose one of 1, 2, 4, 8, 16, 32"):
        window_plan(100, hop)


# Log-mel --------------------------------------------------------------------------------------------------------------


def golden_waveform(num_samples):
    noise = np.random.RandomState(zlib.crc32(b"0:wave")).standard_normal(num_samples)
    t = np.arange(num_samples) / 44100
    return (0.3 * np.sin(2 * np.pi * (220 + 60 * t) * t) + 0.05 * noise).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "waveform"),
    [("short", np.pad(golden_waveform(30_000), (45_599 - 30_000, 0))), ("nominal", golden_waveform(46_746))],
)
def test_log_mel_is_librosas(name, waveform):
    golden = load_file(GOLDEN / "mel_seed0.safetensors")
    extractor = jca.JCAFeatureExtractor()
    decibels = extractor.decibels(torch.from_numpy(waveform)).numpy()
    assert np.abs(decibels - golden[f"mel.{name}.power_db"]).max() < 1e-3
    normalised = extractor(waveform)["input_features"].numpy()
    assert np.abs(normalised - golden[f"mel.{name}.normalised"]).max() < 1e-4


def test_log_mel_of_a_batch_is_that_of_its_clips():
    clips = np.random.default_rng(0).standard_normal((3, 47_040)).astype(np.float32)
    clips[1] *= 1e-3  # the floor is 80 dB below the loudest of its own clip
    extractor = jca.JCAFeatureExtractor()
    batch = extractor(clips)["input_features"]
    assert batch.shape == (3, 64, 107)
    for clip, features in zip(clips, batch, strict=True):
        torch.testing.assert_close(features, extractor(clip)["input_features"])


# Media ----------------------------------------------------------------------------------------------------------------


def collect(processor, source, hop=8, **options):
    windows = list(processor.windows(source, hop=hop, **options))
    clips = {}
    for window in windows:
        for index, end in enumerate(window["end_frames"].tolist()):
            clips[end] = {name: window[name][index] for name in ("crops", "waveforms", "video_mask", "audio_mask")}
    return clips, [row for window in windows for row in window["rows"]]


@pytest.mark.parametrize("fps", [17, 25, 30, 60])
def test_a_clap_is_seen_and_heard_when_it_was(tmp_path, fps):
    """At second 7 of a file of any frame rate, in the picture and in the sound of the clips that span it."""
    path = clapping_video(tmp_path / "clap.mp4", seconds=9, claps=(7,), fps=fps)
    clips, frames = collect(tiny_processor(), path, hop=1)
    assert len(frames) == 9 * fps
    assert [frame["time"] for frame in frames] == pytest.approx([index / fps for index in range(9 * fps)], abs=1e-3)
    true_frame = round(7 * fps) / fps * 30  # the file's frame that is nearest to second 7, on the grid
    # a clip ends with every grid frame: the clap is its last crop when the clip ends with it
    seen = [end for end in range(31, 265) if clips[end]["crops"][-1].mean() > 128]
    assert seen == pytest.approx([true_frame] * len(seen), abs=max(1, 15 / fps))
    assert 1 <= len(seen) <= max(1, np.ceil(30 / fps))
    heard = []
    for end in range(31, 265):
        loud = np.flatnonzero(np.abs(clips[end]["waveforms"]) > 0.2)
        if len(loud):
            start = (end - 31) / 30
            heard.append(start + loud[0] / 44100)
    assert len(heard) >= 31
    assert np.allclose(heard[:-2], 7, atol=0.5 / 30)


CLOCKS = ["late_start.ts", "audio_first.mkv", "audio_late.mp4", "variable_rate.mp4", "edited.mp4", "b_frames.mp4"]
PICTURES = ["rotated.mp4", "interlaced.ts", "10_bit.mp4", "two_sizes.mkv", "wide_pixels.mp4", "web.webm"]


@pytest.mark.parametrize("name", CLOCKS + PICTURES)
def test_both_inputs_have_the_clap_of_any_media_where_it_was(tmp_path, name):
    CLAPPING[name](tmp_path / name)
    clips, frames = collect(tiny_processor(), str(tmp_path / name), hop=1)
    # a clip ends with every grid frame: second 7 is grid frame 210
    seen = [end for end in range(31, 260) if clips[end]["crops"][-1].mean() > 128]
    assert min(abs(end - 210) for end in seen) == 0
    assert all(abs(end - 210) <= (45 if name.startswith("variable") else 1) for end in seen)  # after a pause of 1.5 s
    for end in (212, 230, 238):
        onset = np.flatnonzero(np.abs(clips[end]["waveforms"]) > 0.2)[0] / 44100 + (end - 31) / 30
        assert onset == pytest.approx(7, abs=0.5 / 30)
    assert frames[0]["time"] == 0
    white = min(frames, key=lambda frame: abs(frame["time"] - 7))
    assert white["time"] == pytest.approx(7, abs=0.5 / 30)


@pytest.mark.parametrize("start", [0.5, 2.0])
def test_audio_that_starts_late(tmp_path, start):
    waveform = np.full(44100 * 3, 0.4, np.float32) * np.sin(np.arange(44100 * 3) / 10).astype(np.float32)
    path = write_video(tmp_path / "late.mp4", 150, waveform=waveform, audio_start=start)
    clips, frames = collect(tiny_processor(), path, hop=1)
    first = next(index for index, frame in enumerate(frames) if frame["audio_present"])
    assert first == pytest.approx(start * 30, abs=2)
    end = round(start * 30) + 15
    onset = np.flatnonzero(np.abs(clips[end]["waveforms"]) > 0.2)[0] / 44100 + (end - 31) / 30
    assert onset == pytest.approx(start, abs=0.5 / 30)
    assert not clips[3]["audio_mask"]
    assert clips[end]["audio_mask"]


def test_video_without_audio_and_audio_that_ends_early(tmp_path, silent_video):
    clips, frames = collect(tiny_processor(), silent_video)
    assert len(frames) == 40
    assert not any(frame["audio_present"] for frame in frames)
    assert not any(clip["audio_mask"] for clip in clips.values())
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, 44100).astype(np.float32)
    clips, frames = collect(tiny_processor(), write_video(tmp_path / "short.mp4", 120, waveform=waveform))
    heard = [frame["audio_present"] for frame in frames]
    assert len(frames) == 120
    assert sum(heard) == pytest.approx(30, abs=3)
    assert heard == sorted(heard, reverse=True)
    assert clips[31]["audio_mask"]
    assert not clips[111]["audio_mask"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_path_bytes_file_url_and_arrays_are_the_same(video, tmp_path):
    processor = tiny_processor()
    expected = processor(videos=video)
    assert expected["pixel_values"].shape == (2, 16, 8, 3, 16, 16)
    assert expected["input_features"].shape == (2, 16, 64, 107)
    sources = [Path(video), Path(video).read_bytes(), open(video, "rb")]  # noqa: SIM115
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=Path(video).parent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sources.append(f"http://127.0.0.1:{server.server_port}/a%20b%20%C3%BC.mp4")
    for source in sources:
        given = processor(videos=source)
        for name, tensor in expected.items():
            torch.testing.assert_close(given[name], tensor, msg=f"{name} of {type(source)}")
    server.shutdown()

    with av.open(video) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(video) as container:
        audio = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    given = processor(videos=frames, audio=audio, fps=30, sampling_rate=44100)
    # the scaler goes through RGB here: colours are off by rounding, 1/255 in a colour is 0.02 after normalisation
    torch.testing.assert_close(given["pixel_values"], expected["pixel_values"], atol=0.06, rtol=0)
    torch.testing.assert_close(given["input_features"], expected["input_features"])
    assert torch.equal(given["video_mask"], expected["video_mask"])


def test_given_audio_replaces_the_files_own_and_is_resampled(video):
    t = np.arange(16_000 * 20) / 16_000
    tone = (0.5 * np.sin(2 * np.pi * 1000 * t)).astype(np.float32)
    clips, _ = collect(tiny_processor(), video, audio=tone, sampling_rate=16_000)
    spectrum = np.abs(np.fft.rfft(clips[95]["waveforms"]))
    assert spectrum.argmax() * 44100 / 47_040 == pytest.approx(1000, abs=2)


def test_center_crop_and_given_faces(tmp_path):
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, 8:56] = (200, 40, 40)  # the central square is red
    path = write_video(tmp_path / "red.mp4", 8, picture=lambda index: picture)
    clips, frames = collect(jca.JCAProcessor(video_processor=jca.JCAVideoProcessor(size=48, faces="center")), path)
    center = clips[7]["crops"].astype(int)
    assert np.abs(center[..., 2:-2, :] - (200, 40, 40)).max() < 30
    assert frames[0]["box"] == [8, 0, 56, 48]
    assert not frames[0]["face_detected"]
    clips, frames = collect(tiny_processor(faces="given"), path)
    assert clips[7]["crops"][:, :, 0].mean() < 40  # the black edge is part of the face crop
    assert frames[0]["box"] == [0, 0, 64, 48]
    assert frames[0]["face_detected"]


def test_crops_of_a_folder(tmp_path):
    """Aff-Wild2's crops count from 1; a missing one is a frame without a face, and a clip takes those that are there."""
    path = write_video(tmp_path / "video.mp4", 64)
    folder = tmp_path / "crops"
    folder.mkdir()
    for number in [*range(1, 33), *range(60, 65)]:
        with av.open(str(folder / f"{number:05d}.jpg"), "w", format="image2") as container:
            stream = container.add_stream("mjpeg", options={"qscale": "2"})
            stream.width = stream.height = 16
            stream.pix_fmt = "yuvj420p"
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), number * 3, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    clips, frames = collect(tiny_processor(), path, hop=1, crops_dir=folder)
    assert [frame["face_detected"] for frame in frames] == [*[True] * 32, *[False] * 27, *[True] * 5]

    def numbers(end):
        return np.round(clips[end]["crops"].mean(axis=(1, 2, 3)) / 3).astype(int).tolist()

    assert numbers(31) == [4, 8, 12, 16, 20, 24, 28, 32]
    assert numbers(45) == [18, 20, 22, 24, 26, 28, 30, 32]  # 18 faces in its span: every second
    assert numbers(63) == [60, 61, 62, 63, 64, 64, 64, 64]  # 5 faces: the last again
    assert [bool(clips[end]["video_mask"]) for end in (31, 45, 62, 63)] == [True, True, True, True]
    assert not collect(tiny_processor(), path, hop=1, crops_dir=tmp_path / "none")[0][31]["video_mask"]


@pytest.mark.parametrize("num_frames", [1, 3, 4, 31, 32, 40])
def test_the_first_whole_clip_is_the_same_at_every_hop(num_frames):
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, 24, 32, 3)).astype(np.uint8)
    found = [collect(tiny_processor(), frames, hop=hop)[0] for hop in (1, 8, 32)]
    first, *others = (clips[max(end for end in clips if end <= 31)] for clips in found)
    assert first["video_mask"]
    for clip in others:
        assert clip["video_mask"]
        np.testing.assert_array_equal(clip["crops"], first["crops"])


def test_memory_does_not_hold_the_whole_file(video):
    """Windows come before the file has been read to its end."""
    windows = tiny_processor().windows(video, hop=8)
    assert len(next(window for window in windows if window["rows"])["rows"]) < 600


def test_waveform_reads_across_pieces_and_gaps():
    sound = Waveform()
    sound.write(10, np.ones(5, np.float32))
    sound.write(20, np.full(5, 2.0, np.float32))
    samples, found = sound.read(8, 23)
    assert samples.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 2, 2, 2]
    assert found
    assert not sound.read(15, 20)[1]
    sound.forget(20)
    assert not sound.read(10, 20)[1]


# Processor ------------------------------------------------------------------------------------------------------------


def test_defaults_are_the_papers():
    processor = jca.JCAProcessor()
    assert (processor.num_clips, processor.clip_length, processor.clip_stride, processor.span) == (16, 8, 4, 32)
    assert processor.video_processor.size == 112
    assert processor.feature_extractor.sampling_rate == 44100


def test_save_load_and_pickle(tmp_path):
    processor = jca.JCAProcessor(
        jca.JCAFeatureExtractor(feature_size=40), jca.JCAVideoProcessor(size=24, faces="given"), num_clips=4
    )
    processor.save_pretrained(tmp_path)
    for other in (AutoProcessor.from_pretrained(tmp_path), pickle.loads(pickle.dumps(processor))):
        assert type(other) is jca.JCAProcessor
        assert other.feature_extractor.to_dict().keys() >= {"n_fft", "win_length", "hop_length", "floor", "top_db"}
        assert (other.video_processor.size, other.video_processor.faces, other.num_clips) == (24, "given", 4)
        assert other.feature_extractor.feature_size == 40


# Bad input ------------------------------------------------------------------------------------------------------------


def test_errors_name_the_value_and_the_remedy(tmp_path, video):
    processor = tiny_processor()

    def reading(source, **options):
        return lambda: list(processor.windows(source, **options))

    text = tmp_path / "text.mp4"
    text.write_text("no media")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    sound = write_sound(tmp_path / "sound.wav")
    cases = [
        (reading("nowhere.mp4"), FileNotFoundError, "There is no file 'nowhere.mp4'"),
        (reading(tmp_path), IsADirectoryError, "is a folder: give a video file"),
        (reading(text), ValueError, r"text\.mp4' can not be opened as media .* give a file that FFmpeg can play"),
        (reading(empty), ValueError, r"empty\.mp4' can not be opened as media"),
        (reading(b"123"), ValueError, "<3 bytes> can not be opened as media"),
        (reading(sound), ValueError, r"sound\.wav' has no video stream that can be decoded \(streams: audio\)"),
        (reading(np.zeros((0, 8, 8, 3), np.uint8)), ValueError, "holds no video frame"),
        (reading(np.zeros((4, 8, 8), np.uint8)), ValueError, r"shape \(4, 8, 8\).*give \(frames, height, width, 3\)"),
        (reading(np.zeros((4, 8, 8, 3))), ValueError, "dtype float64; give .* uint8"),
        (reading([video, video]), ValueError, "path, URL or bytes of one video"),
        (reading(video, audio=np.zeros((2, 9), np.float32)), ValueError, r"audio has shape \(2, 9\).*mono"),
        (reading(video, audio=np.zeros(9, np.int16)), ValueError, r"dtype int16.*floats in \[-1, 1\]"),
        (
            lambda: jca.JCAVideoProcessor(faces="none"),
            ValueError,
            "faces='none' is not known. Choose one of detect, center, given",
        ),
        (lambda: jca.JCAFeatureExtractor()(np.zeros(100)), ValueError, "100 samples"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()
