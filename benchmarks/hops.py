"""What the hop costs and what it is worth: CCC on a validation split and processor time of the encoders, for every hop.

python benchmarks/hops.py PREPARED MODEL... [--json FILE] [--plot FILE]
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from measure import add_json, print_table, timed
from transformers import AutoModel, AutoProcessor

import jca  # noqa: F401  (registers the model)
from jca.evaluation import predict
from jca.features import extract_features
from jca.metrics import score
from jca.preparation import load_prepared


COST = "encoders, ms a second of video"


def measure(source: str, data: Path) -> list[dict]:
    model, processor = AutoModel.from_pretrained(source), AutoProcessor.from_pretrained(source)
    dataset, rows, spent = load_prepared(data, "validation"), [], [0.0]
    for name in ("get_video_features", "get_track_features", "get_audio_features"):
        setattr(model, name, timed(getattr(model, name), time.process_time, spent))
    for hop in (hop for hop in range(1, processor.span + 1) if processor.span % hop == 0):
        spent[0] = 0.0
        with tempfile.TemporaryDirectory() as folder:
            features = extract_features(dataset, model, processor, hop, folder)
            labels = list(features.with_format("numpy")["labels"])
            outputs = [predict(model, features, processor, hop, smoothing) for smoothing in (None, "paper")]
            result, smoothed = (score(part, labels, list(model.config.id2label.values())) for part in outputs)
        seconds = sum(times[-1] for times in features["times"])
        row = {
            "model": source,
            "hop": str(hop),
            COST: 1000 * spent[0] / seconds,
        }
        scores = {name.replace("ccc_", "CCC, "): x for name, x in result.items() if name.startswith("ccc_")}
        rows.append({**row, **scores, "CCC": result["ccc"], "CCC, smoothed as in the paper": smoothed["ccc"]})
    for row in rows:
        row["of hop 1's time"] = row[COST] / rows[0][COST]
    return [{name: round(x, 4) if isinstance(x, float) else x for name, x in row.items()} for row in rows]


def plot(rows: list[dict], file: Path) -> None:
    """CCC over the cost of the encoders, a line for each model and a point for each hop."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    styles = (("#0072B2", "o-"), ("#D55E00", "s--"), ("#009E73", "^:"))
    for model, (color, style) in zip(dict.fromkeys(row["model"] for row in rows), styles, strict=False):
        points = [(row[COST], row["CCC"], row["hop"]) for row in rows if row["model"] == model]
        axes.plot(*zip(*(point[:2] for point in points), strict=True), style, color=color, label=model)
        for x, y, hop in points:
            axes.annotate(hop, (x, y), xytext=(4, -11), textcoords="offset points", fontsize=8, color=color)
    axes.set(xscale="log", xlabel=COST, ylabel="CCC, mean of valence and arousal")
    axes.margins(0.08, 0.12)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="numbers at the points: hop", title_fontsize=8)
    figure.savefig(file, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="prepared corpus")
    parser.add_argument(
        "models", nargs="+", help="folders or Hub repositories of models, at most three for the picture"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture of it")
    add_json(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for model in arguments.models for row in measure(model, arguments.data)]
    print_table(rows, file=arguments.json, ratios=["of hop 1's time"])
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
