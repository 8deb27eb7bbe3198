"""What the hop costs and what it is worth: CCC on a validation split and processor time of the encoders, for every hop.

python benchmarks/hops.py MODEL PREPARED [--json FILE] [--plot FILE]
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from measure import add_json, print_table
from transformers import AutoModel, AutoProcessor

import jca  # noqa: F401  (registers the model)
from jca.evaluation import evaluate
from jca.features import extract_features
from jca.preparation import load_prepared


def measure(source: str, data: Path) -> list[dict]:
    model, processor = AutoModel.from_pretrained(source), AutoProcessor.from_pretrained(source)
    dataset, rows, spent = load_prepared(data, "validation"), [], 0.0

    def timed(encode):
        def run(*arguments):
            nonlocal spent
            start = time.process_time()
            out = encode(*arguments)
            spent += time.process_time() - start
            return out

        return run

    for name in ("get_video_features", "get_track_features", "get_audio_features"):
        setattr(model, name, timed(getattr(model, name)))
    for hop in (hop for hop in range(1, processor.span + 1) if processor.span % hop == 0):
        spent = 0.0
        with tempfile.TemporaryDirectory() as folder:
            features = extract_features(dataset, model, processor, hop, folder)
            result = evaluate(model, features, processor, hop)
        frames = sum(len(times) for times in features["times"])
        row = {
            "hop": hop,
            "encoders, ms of processor time a second of video": 1000 * spent / frames * processor.frame_rate,
        }
        scores = {name.replace("ccc_", "CCC, "): x for name, x in result.items() if name.startswith("ccc_")}
        rows.append({**row, **scores, "CCC": result["ccc"]})
    return [{name: round(x, 4) for name, x in row.items()} for row in rows]


def plot(rows: list[dict], file: Path) -> None:
    """CCC over the cost of the encoders, a point for each hop."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes, cost = figure.subplots(), list(rows[0])[1]
    relative = [row[cost] / rows[0][cost] for row in rows]
    axes.plot(relative, [row["CCC"] for row in rows], "o-", color="#0072B2")
    for x, row in zip(relative, rows, strict=True):
        axes.annotate(f"hop {row['hop']}", (x, row["CCC"]), xytext=(4, -11), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xlabel="time of the encoders, hop 1 is 1", ylabel="CCC, mean of valence and arousal")
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub repository of a model")
    parser.add_argument("data", type=Path, help="prepared corpus")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture of it")
    add_json(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(arguments.model, arguments.data)
    print_table(rows, {"model": arguments.model}, arguments.json)
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
