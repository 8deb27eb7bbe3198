"""The rows of the paper's comparison over the same frozen features, as a Markdown table with mean and spread of the seeds.

Trains what has not been trained yet; the encoders are trained anew for each seed.
"""

import argparse
import json

import numpy as np

from jca.training import load_recipe, train_encoder, train_fusion


ROWS = {
    "video": "face alone",
    "audio": "voice alone",
    "concat": "concatenation",
    "cross_attention": "cross-attention",
    "joint_cross_attention": "joint cross-attention",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML file, see recipes/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    results = {row: [] for row in ROWS}
    for seed in arguments.seeds:
        for modality in ("video", "audio"):
            train_encoder(recipe, modality, seed)
        for row in ROWS:
            folder = train_fusion(recipe, seed, row)
            best = json.loads((folder / "metrics.json").read_text())["best"]
            results[row].append([best["ccc_valence"], best["ccc_arousal"], best["ccc"]])
    print(f"CCC over all labelled frames of the validation split of {recipe.data.root}, seeds {arguments.seeds}:\n")
    print("| fusion | valence | arousal | mean |\n|---|---|---|---|")
    for row, name in ROWS.items():
        values = np.array(results[row])
        spread = [f" ± {s:.3f}" if len(values) > 1 else "" for s in values.std(0)]
        print(f"| {name} | " + " | ".join(f"{m:.3f}{s}" for m, s in zip(values.mean(0), spread, strict=True)) + " |")


if __name__ == "__main__":
    main()
