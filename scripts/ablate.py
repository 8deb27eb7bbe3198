"""The rows of the paper's comparison and of its successors over the same features, as a Markdown table beside the paper's.

Trains what has not been trained yet; mean and standard deviation over seeds and folds, where there are several.
"""

import argparse
import json
import sys
from datetime import timedelta

import numpy as np
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from jca.recipes import ROWS, load_recipe
from jca.training import train_encoder, train_fusion


# Title, and CCC of valence and arousal on Aff-Wild2's validation set as the authors print it (slides of arXiv 2203.14779,
# tables of pages 44 and 45; audio by ResNet-18). Their T-BIOM and ICASSP tables could not be read.
PAPER = {
    "video": ("face alone", "0.417", "0.539"),
    "audio": ("voice alone", "0.351", "0.356"),
    "concat": ("concatenation", "0.531", "0.468"),
    "cross_attention": ("cross-attention", "0.541", "0.517"),
    "joint_cross_attention": ("joint cross-attention", "0.657", "0.580"),
    "tcn": ("joint cross-attention + TCN", "0.663", "0.584"),
    "recursive": ("recursive joint cross-attention", "", ""),
    "lstm": ("joint cross-attention + LSTM", "", ""),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML file, see recipes/")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="all without it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--folds", type=int, nargs="+", default=[None], help="of the cross-validation; the official split without it"
    )
    arguments = parser.parse_args()
    # while features are extracted, the last process may be at a long video
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])
    results = {row: [] for row in arguments.rows}
    try:
        recipe = load_recipe(arguments.recipe)
        for fold in arguments.folds:
            for seed in arguments.seeds:
                for modality in ("video", "audio"):
                    if modality not in recipe.encoders:
                        train_encoder(recipe, modality, seed, fold)
                for row in arguments.rows:
                    folder = train_fusion(recipe, seed, fold, row)
                    reported = json.loads((folder / "metrics.json").read_text())["reported"]
                    results[row].append([reported["ccc_valence"], reported["ccc_arousal"], reported["ccc"]])
    except (OSError, FloatingPointError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if not accelerator.is_main_process:
        return
    split = "the validation split" if arguments.folds == [None] else f"folds {arguments.folds}"
    print(f"CCC over all labelled frames of {split} of {recipe.data.root}, seeds {arguments.seeds}:\n")
    print("| fusion | valence | arousal | mean | paper, valence | paper, arousal |\n|---|---|---|---|---|---|")
    for row, values in results.items():
        title, *paper = PAPER[row]
        values = np.array(values)
        spread = [f" ± {s:.3f}" if len(values) > 1 else "" for s in values.std(0)]
        numbers = [f"{m:.3f}{s}" for m, s in zip(values.mean(0), spread, strict=True)]
        print(f"| {title} | {' | '.join([*numbers, *paper])} |")


if __name__ == "__main__":
    main()
