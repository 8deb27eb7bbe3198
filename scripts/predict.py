"""Valence and arousal of every frame of a video: a CSV file, and a picture if asked for."""

import argparse
from pathlib import Path

from transformers import pipeline

import jca  # noqa: F401  (registers the pipeline)
from jca.affwild2 import read_annotation
from jca.evaluation import parse_smoothing
from jca.explanations import audio_share
from jca.plots import plot_timeline
from jca.timeline import write_csv


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", help="path or URL")
    parser.add_argument("--model", required=True, help="folder or Hub repository of a model")
    parser.add_argument("--csv", required=True, help="file to write, a line for each frame")
    parser.add_argument("--plot", help="picture to write: valence and arousal over time and in the circumplex")
    parser.add_argument(
        "--explain", action="store_true", help="draw how much is owed to face and voice (a second pass)"
    )
    parser.add_argument("--annotation", help="Aff-Wild2 annotation of the video, drawn beside the prediction")
    parser.add_argument("--hop", type=int, default=8, help="frames between the clips that are computed (default: 8)")
    parser.add_argument("--smoothing", type=parse_smoothing, help='odd number of frames, or "paper"; none by default')
    arguments = parser.parse_args()
    pipe = pipeline("audio-visual-emotion", model=arguments.model)
    rows = pipe(arguments.video, hop=arguments.hop, smoothing=arguments.smoothing)
    write_csv(rows, arguments.csv)
    print(f"{len(rows)} frames: {arguments.csv}")
    if arguments.plot:
        labels = read_annotation(arguments.annotation) if arguments.annotation else None
        share = audio_share(pipe.model, pipe.processor, arguments.video, arguments.hop) if arguments.explain else None
        plot_timeline(rows, arguments.plot, Path(arguments.video).name, labels, share)
        print(f"picture: {arguments.plot}")


if __name__ == "__main__":
    main()
