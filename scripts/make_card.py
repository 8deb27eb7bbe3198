"""Model card of a trained model's folder, written into it as README.md, or of a recipe, printed.

A recipe's card is that of a model that was not trained, or with --metrics of one that was:

    python scripts/make_card.py recipes/demo.yaml --metrics model_cards/demo_metrics.json > model_cards/demo.md
"""

import argparse
import sys
from pathlib import Path

from jca.cards import read_metrics, recipe_card, write_card


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder of a trained model, or a recipe")
    parser.add_argument("--metrics", help="metrics.json of the recipe's fusion")
    arguments = parser.parse_args()
    is_folder = Path(arguments.source).is_dir()
    if is_folder and arguments.metrics:
        parser.error("a folder has its own metrics.json")
    try:
        metrics = read_metrics(Path(arguments.metrics)) if arguments.metrics else None
        print(write_card(arguments.source) if is_folder else recipe_card(arguments.source, metrics))
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
