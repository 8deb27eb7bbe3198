"""What the pipeline costs beside its encoders, and its memory. A synthetic video of 640 x 360 px, 30 frames a second.

python benchmarks/pipeline.py stages   # share of the time of each stage, R(2+1)D-18, hop 8
python benchmarks/pipeline.py memory   # peak memory for 10 and for 60 minutes of video, tiny encoders
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
from data import TINY, hardware
from transformers.pipelines import pipeline

import faces_jca
import jca
import media_jca
import processing_jca
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


def make_pipeline(folder: Path, **config):
    torch.manual_seed(0)
    jca.JCAModel(jca.JCAConfig(**config)).save_pretrained(folder / "model")
    jca.JCAProcessor().save_pretrained(folder / "model")
    return pipeline("audio-visual-emotion", model=str(folder / "model"))


class Clock:
    """Seconds in each stage, less those in the stages that it calls."""

    def __init__(self):
        self.seconds, self.stack, self.since = Counter(), ["windows, rows"], time.perf_counter()

    def switch(self) -> None:
        now = time.perf_counter()
        self.seconds[self.stack[-1]] += now - self.since
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


def stages(folder: Path, hop: int = 8) -> None:
    path, pipe, clock = make_video(folder), make_pipeline(folder), Clock()
    processing_jca.decode = clock.timed_generator("decode", media_jca.decode)
    processing_jca.upright = clock.timed("crops: RGB, aligned, scaled", media_jca.upright)
    faces_jca.align = clock.timed("crops: RGB, aligned, scaled", faces_jca.align)
    faces_jca.FaceTracker.__call__ = clock.timed("faces: detection, tracking", faces_jca.FaceTracker.__call__)
    pipe.processor.inputs = clock.timed("normalised pixels, log-mel", pipe.processor.inputs)
    model = pipe.model
    for encoder in (model.video_encoder, model.audio_encoder):
        encoder.forward = clock.timed("encoders", encoder.forward)
    model.forward = clock.timed("fusion", model.forward)
    list(pipe(str(path), hop=32))  # warm
    clock.seconds.clear()
    clock.since = start = time.perf_counter()
    rows = pipe(str(path), hop=hop)
    clock.switch()
    total = time.perf_counter() - start
    detected = sum(row["face_detected"] for row in rows) / len(rows)
    print(
        f"{hardware()}; {SECONDS} s, {WIDTH} x {HEIGHT}, hop {hop}, float32, a face in {detected:.0%} of the frames\n"
    )
    print("| stage | seconds | share | x real time |\n|---|---|---|---|")
    for stage, seconds in clock.seconds.most_common():
        print(f"| {stage} | {seconds:.2f} | {seconds / total:.1%} | {seconds / SECONDS:.3f} |")
    rest = total - clock.seconds["encoders"]
    print(f"| all but the encoders | {rest:.2f} | {rest / total:.1%} | {rest / SECONDS:.3f} |")


def memory(folder: Path) -> None:
    path = make_video(folder)
    make_pipeline(folder, **TINY)
    print(
        f"{hardware()}; {WIDTH} x {HEIGHT}, hop 8, tiny encoders\n\n| minutes | peak memory (MiB) | seconds |\n|---|---|---|"
    )
    peaks = []
    for minutes in (10, 60):
        start = time.perf_counter()
        command = [sys.executable, __file__, "once", "--folder", str(folder), "--video", str(repeat(path, minutes))]
        peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(f"| {minutes} | {peaks[-1]:.0f} | {time.perf_counter() - start:.0f} |", flush=True)
    print(f"\ndifference: {peaks[1] / peaks[0] - 1:+.1%}")


def once(folder: Path, video: str) -> None:
    """Peak memory in MiB of a process that writes the table of a video."""
    pipe = pipeline("audio-visual-emotion", model=str(folder / "model"))
    Timeline.from_rows(pipe.stream(video), name=video).to_csv(folder / "out.csv")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("stages", "memory", "once"))
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--video", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table == "once":
        once(arguments.folder, arguments.video)
        return
    with tempfile.TemporaryDirectory() as folder:
        {"stages": stages, "memory": memory}[arguments.table](Path(folder))


if __name__ == "__main__":
    main()
