"""What the whole pipeline costs, and its memory. A synthetic video of 640 x 360 px, 30 frames a second; random weights.

python benchmarks/pipeline.py stages [--json FILE]   # share of the time of each stage, R(2+1)D-18, hop 8
python benchmarks/pipeline.py speed [--json FILE]    # x real time of models and backends, and of a clip for every frame
python benchmarks/pipeline.py memory [--json FILE]   # peak memory for 10 and for 60 minutes of video, tiny encoders
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from data import TINY
from encoders import MOBILE, R2PLUS1D
from measure import add_json, print_table, product_peak
from torch.utils.flop_counter import FlopCounterMode

import faces_jca
import jca
import media_jca
import processing_jca
from jca.backends import export, load_pipeline
from jca.synthetic import make_synthetic
from jca.timeline import Timeline


WIDTH, HEIGHT, SECONDS = 640, 360, 32


def make_video(folder: Path) -> Path:
    """A subject of the synthetic corpus in the middle of a larger picture, with the voice."""
    corpus, path = make_synthetic(folder / "corpus", num_train=1, num_validation=0, num_proc=1), folder / "video.mp4"
    (source,) = (corpus / "batch1").glob("*.mp4")
    with av.open(str(source)) as given, av.open(str(path), "w") as made:
        video = made.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = made.add_stream_from_template(given.streams.audio[0])
        for packet in given.demux():
            if packet.stream.type == "audio" and packet.dts is not None:
                packet.stream = audio
                made.mux(packet)
            elif packet.stream.type == "video":
                for frame in packet.decode():
                    picture = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
                    small = frame.to_ndarray(format="rgb24", width=360, height=280)
                    picture[80:, 140:500] = small
                    out = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    out.pts, out.time_base = frame.pts, frame.time_base
                    made.mux(video.encode(out))
        made.mux(video.encode(None))
    return path


def repeat(path: Path, minutes: int) -> Path:
    """The packets of a video again and again."""
    target = path.with_name(f"{minutes}.mp4")
    with av.open(str(target), "w") as made:
        streams = None
        for number in range(round(minutes * 60 / SECONDS)):
            with av.open(str(path)) as given:
                streams = streams or {s.index: made.add_stream_from_template(s) for s in given.streams}
                for packet in given.demux():
                    if packet.dts is not None:
                        shift = round(number * (SECONDS + 0.1) / packet.time_base)  # sound is a little longer
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = streams[packet.stream.index]
                        made.mux(packet)
    return target


def make_model(folder: Path, **config) -> Path:
    torch.manual_seed(0)
    jca.JCAModel(jca.JCAConfig(**config)).save_pretrained(folder)
    jca.JCAProcessor().save_pretrained(folder)
    return folder


class Clock:
    """What each stage spends, less what the stages spend that it calls: seconds, or what another `read` counts."""

    def __init__(self):
        self.stack = ["windows, rows"]
        self.start()

    def start(self, read: Callable[[], float] = time.perf_counter) -> None:
        self.read, self.spent, self.since = read, Counter(), read()

    def switch(self) -> None:
        now = self.read()
        self.spent[self.stack[-1]] += now - self.since
        self.since = now

    def timed(self, stage: str, function: Callable) -> Callable:
        def run(*arguments, **options):
            self.switch()
            self.stack.append(stage)
            try:
                return function(*arguments, **options)
            finally:
                self.switch()
                self.stack.pop()

        return run

    def timed_generator(self, stage: str, function: Callable) -> Callable:
        def run(*arguments, **options):
            events, end = function(*arguments, **options), object()
            step = self.timed(stage, lambda: next(events, end))
            while (event := step()) is not end:
                yield event

        return run


def time_encoders(model: jca.JCAModel, clock: Clock) -> None:
    for encoder in (model.video_encoder, model.audio_encoder):
        for name in ("forward", "forward_track"):
            if hasattr(encoder, name):
                setattr(encoder, name, clock.timed("encoders", getattr(encoder, name)))


def stages(folder: Path, hop: int = 8) -> tuple[list[dict], dict]:
    path, pipe, clock = str(make_video(folder)), load_pipeline(make_model(folder / "model")), Clock()
    processing_jca.decode = clock.timed_generator("decode", media_jca.decode)
    processing_jca.upright = clock.timed("crops: RGB, aligned, scaled", media_jca.upright)
    faces_jca.align = clock.timed("crops: RGB, aligned, scaled", faces_jca.align)
    faces_jca.FaceTracker.__call__ = clock.timed("faces: detection, tracking", faces_jca.FaceTracker.__call__)
    pipe.processor.inputs = clock.timed("normalised pixels, log-mel", pipe.processor.inputs)
    time_encoders(pipe.model, clock)
    pipe.model.forward = clock.timed("fusion", pipe.model.forward)
    with FlopCounterMode(display=False) as counter:
        clock.start(counter.get_total_flops)
        rows = pipe(path, hop=hop)
        clock.switch()
    work, peak = clock.spent, product_peak()
    clock.start()
    pipe(path, hop=hop)
    clock.switch()
    total, encoders = clock.spent.total(), clock.spent["encoders"]
    work["all but the encoders"] = work.total() - work["encoders"]
    detected = sum(row["face_detected"] for row in rows) / len(rows)
    taken = dict(clock.spent.most_common()) | {"all but the encoders": total - encoders}
    table = [
        {
            "stage": stage,
            "seconds": round(seconds, 2),
            "share": f"{seconds / total:.1%}",
            "x real time": round(seconds / SECONDS, 3),
            "of the peak": float(f"{work[stage] / seconds / peak:.2g}") if work[stage] else "no products",
            "of the encoders' time": float(f"{seconds / encoders:.2g}"),
        }
        for stage, seconds in taken.items()
    ]
    size = f"{SECONDS} s, {WIDTH} x {HEIGHT}"
    about = {"video": size, "hop": hop, "precision": "float32", "frames with a face": f"{detected:.0%}"}
    return table, {**about, "peak (GOP/s)": round(peak / 1e9)}


def speed(folder: Path) -> tuple[list[dict], dict]:
    path = str(make_video(folder))
    r2plus1d = make_model(folder / "r2plus1d")
    tracks = make_model(folder / "tracks", video_config={**R2PLUS1D, "tracks": True})
    mobile = make_model(folder / "mobile", video_config=MOBILE, audio_config={**MOBILE, "num_channels": 1})
    for source, name, videos in (
        (r2plus1d, "float32", None),
        (r2plus1d, "int8", [path]),
        (mobile, "mobile_graphs", None),
    ):
        made = load_pipeline(source)
        export(made.model, made.processor, folder / name, videos)
    ways = [  # what, model, backend, hop
        ("R(2+1)D-18, a clip for every frame, one window at a time", r2plus1d, None, 1),
        ("R(2+1)D-18", r2plus1d, None, 8),
        ("R(2+1)D-18, torch", r2plus1d, "torch", 8),
        ("R(2+1)D-18, onnx", folder / "float32", "onnx", 8),
        ("R(2+1)D-18, onnx int8", folder / "int8", "onnx", 8),
        ("R(2+1)D-18, openvino", folder / "float32", "openvino", 8),
        ("R(2+1)D-18, openvino int8", folder / "int8", "openvino", 8),
        ("R(2+1)D-18, tracks", tracks, None, 8),
        ("R(2+1)D-18, tracks, torch", tracks, "torch", 8),
        ("mobile", mobile, None, 8),
        ("mobile, openvino", folder / "mobile_graphs", "openvino", 8),
    ]
    rows = []
    for what, source, backend, hop in ways:
        pipe, clock = load_pipeline(source, backend), Clock()
        time_encoders(pipe.model, clock)
        list(pipe.stream(path, hop=32))  # warm
        clock.start()
        list(pipe.stream(path, hop=hop))
        clock.switch()
        total, encoders = clock.spent.total(), clock.spent["encoders"]
        rows.append(
            {
                "pipeline": what,
                "hop": str(hop),
                "seconds": round(total, 2),
                "faster than real time": round(SECONDS / total, 2),
                "of it encoders": f"{encoders / total:.0%}",
                "whole / encoders": round(total / encoders, 2),
                "ratio": round(total / rows[0]["seconds"], 4) if rows else 1.0,
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows, {"video": f"{SECONDS} s, {WIDTH} x {HEIGHT}"}


def memory(folder: Path) -> tuple[list[dict], dict]:
    path = make_video(folder)
    make_model(folder / "model", **TINY)
    rows = []
    for minutes in (10, 60):
        start = time.perf_counter()
        command = [sys.executable, __file__, "memory", "--folder", str(folder), "--video", str(repeat(path, minutes))]
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append(
            {
                "minutes": str(minutes),
                "peak memory (MiB)": round(peak),
                "against the first": round(peak / rows[0]["peak memory (MiB)"], 3) if rows else 1.0,
                "seconds": round(time.perf_counter() - start),
            }
        )
    return rows, {"video": f"{WIDTH} x {HEIGHT}", "hop": 8, "encoders": "tiny"}


def once(folder: Path, video: str) -> None:
    """Peak memory in MiB of a process that writes the table of a video."""
    pipe = load_pipeline(folder / "model")
    Timeline.from_rows(pipe.stream(video), name=video).to_csv(folder / "out.csv")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"stages": stages, "speed": speed, "memory": memory}
    parser.add_argument("table", choices=tables)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a process that this one started
    parser.add_argument("--video", help=argparse.SUPPRESS)
    add_json(parser)
    arguments = parser.parse_args()
    if arguments.folder:
        once(arguments.folder, arguments.video)
        return
    with tempfile.TemporaryDirectory() as folder:
        ratios = {"stages": ["of the encoders' time"], "speed": ["ratio"], "memory": ["against the first"]}
        print_table(*tables[arguments.table](Path(folder)), arguments.json, ratios[arguments.table])


if __name__ == "__main__":
    main()
