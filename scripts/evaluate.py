"""Score of a model on a split of Aff-Wild2 or a corpus laid out like it: CCC, MSE and PCC over all labelled frames.

CCC = 2 s_xy / (s_x² + s_y² + (mean_x - mean_y)²), population variances, all videos of the split in one series.
"""

import argparse
import json
from pathlib import Path

from transformers import AutoModel, AutoProcessor

import jca  # noqa: F401  (registers the model)
from jca.affwild2 import SPLITS, load_affwild2
from jca.evaluation import evaluate
from jca.features import extract_features


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub repository of a model")
    parser.add_argument("data", help="folder of the release")
    parser.add_argument("--split", choices=list(SPLITS), default="validation")
    parser.add_argument("--hop", type=int, default=8, help="frames between the clips that are computed (default: 8)")
    parser.add_argument(
        "--smoothing",
        type=lambda text: text if text == "paper" else int(text),
        help='odd number of frames, or "paper"; none by default',
    )
    parser.add_argument("--cache", default="runs/cache", help="folder in which the encoders' features are kept")
    parser.add_argument("--output", help="JSON file to write")
    arguments = parser.parse_args()
    model, processor = AutoModel.from_pretrained(arguments.model), AutoProcessor.from_pretrained(arguments.model)
    dataset = load_affwild2(arguments.data, arguments.split)
    features = extract_features(dataset, model, processor, arguments.hop, arguments.cache)
    metrics = evaluate(model, features, processor, arguments.hop, arguments.smoothing)
    print(f"{arguments.split} of {arguments.data}: {len(dataset)} videos, {metrics['frames']} labelled frames")
    print("| | CCC | MSE | PCC |\n|---|---|---|---|")
    for name in model.config.id2label.values():
        print(
            f"| {name} | {metrics[f'ccc_{name}']:.3f} | {metrics[f'mse_{name}']:.3f} | {metrics[f'pcc_{name}']:.3f} |"
        )
    print(f"| mean | {metrics['ccc']:.3f} | | |")
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()
