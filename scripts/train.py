"""Train a recipe: `accelerate launch scripts/train.py recipes/demo.yaml`. What has ended is not trained again."""

import argparse

from jca.training import STAGES, load_recipe, train_encoder, train_fusion


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="YAML file, see recipes/")
    parser.add_argument("--stage", choices=STAGES, action="append", help="these alone; all three in order without it")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    for stage in arguments.stage or STAGES:
        folder = (
            train_fusion(recipe, arguments.seed) if stage == "fusion" else train_encoder(recipe, stage, arguments.seed)
        )
        print(f"{stage}: {folder}")


if __name__ == "__main__":
    main()
