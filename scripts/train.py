"""Train a recipe: `accelerate launch scripts/train.py recipes/demo.yaml`. What has ended is not trained again.

A run that was stopped goes on from its newest complete checkpoint and ends with the weights of one that never was.
"""

import argparse
import sys
from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from jca.recipes import STAGES, load_recipe
from jca.training import train_encoder, train_end_to_end, train_fusion


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML file, see recipes/")
    parser.add_argument(
        "--stage", choices=STAGES, action="append", help="these alone; the paper's three in order without it"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run for each (default: 0)")
    parser.add_argument(
        "--folds", type=int, nargs="+", default=[None], help="of the cross-validation; the official split without it"
    )
    parser.add_argument(
        "--resume", choices=("latest", "none"), default="latest", help="none: start anew (default: latest checkpoint)"
    )
    parser.add_argument("--log_with", help="a tracker of Accelerate's: tensorboard, trackio, wandb, ...")
    arguments = parser.parse_args()
    # while features are extracted, the last process may be at a long video
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])
    options = {"resume": arguments.resume == "latest", "log_with": arguments.log_with}
    try:
        recipe = load_recipe(arguments.recipe)
        for fold in arguments.folds:
            for seed in arguments.seeds:
                needed = [stage for stage in STAGES[:3] if stage not in recipe.encoders]
                for stage in arguments.stage or needed:
                    if stage not in recipe.given:
                        raise ValueError(f"{arguments.recipe} has no section {stage}: write one, see recipes/.")
                    if stage in ("video", "audio"):
                        folder = train_encoder(recipe, stage, seed, fold, **options)
                    else:
                        train = train_fusion if stage == "fusion" else train_end_to_end
                        folder = train(recipe, seed, fold, **options)
                    accelerator.print(f"{stage}: {folder}")
    except (OSError, FloatingPointError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from the newest checkpoint.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
