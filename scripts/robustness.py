"""How a model holds as more and more clips lack a modality: CCC over the share missing, as a table and a picture.

The encoders run once: what is missing is taken from the kept features, in stretches of about 4 s.
"""

import argparse
import json
import sys
from pathlib import Path

from transformers import AutoModel, AutoProcessor

import jca  # noqa: F401  (registers the model)
from jca.corpus import SPLITS, CorpusError, load_corpus
from jca.corruption import curve_table, missing_curve
from jca.features import extract_features
from jca.plots import plot_robustness


def mean_ccc(path):
    """The mean CCC of a metrics file of scripts/evaluate.py, or of the fusion stage of training."""
    try:
        metrics = json.loads(Path(path).read_text())
        return float(metrics.get("reported", metrics)["ccc"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise argparse.ArgumentTypeError(
            f"{path!r} holds no CCC ({error}): give what evaluate.py --output or the fusion stage wrote"
        ) from error


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub repository of a model")
    parser.add_argument("data", help="prepared folder, folder of Aff-Wild2's release, or CSV file")
    parser.add_argument("output", help="folder for robustness.md, robustness.png and robustness.json")
    parser.add_argument("--split", choices=SPLITS[:2], default="validation")
    parser.add_argument("--hop", type=int, default=8, help="frames between the clips that are computed (default: 8)")
    parser.add_argument("--cache", default="runs/cache", help="folder in which the encoders' features are kept")
    parser.add_argument("--seed", type=int, default=0, help="of which clips lack it (default: 0)")
    for modality in ("video", "audio"):
        parser.add_argument(
            f"--{modality}_alone",
            type=mean_ccc,
            metavar="METRICS",
            help=f"metrics file of a model of {modality} alone, on the same split: a line to compare with",
        )
    arguments = parser.parse_args()
    model, processor = AutoModel.from_pretrained(arguments.model), AutoProcessor.from_pretrained(arguments.model)
    try:
        dataset = load_corpus(arguments.data, arguments.split)
        features = extract_features(dataset, model, processor, arguments.hop, arguments.cache)
    except (CorpusError, ValueError) as error:
        sys.exit(str(error))
    curves = {
        modality: missing_curve(model, features, processor, arguments.hop, modality, seed=arguments.seed)
        for modality in model.config.modalities
    }
    alone = {"video": arguments.video_alone, "audio": arguments.audio_alone}
    alone = {modality: value for modality, value in alone.items() if value is not None}
    title = f"{arguments.split} of {arguments.data}: CCC where a modality is missing in stretches of about 4 s"
    table = curve_table(curves)
    print(f"{title}\n\n{table}")
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "robustness.md").write_text(f"{title}\n\n{table}\n")
    settings = {name: vars(arguments)[name] for name in ("model", "data", "split", "hop", "seed")}
    (folder / "robustness.json").write_text(json.dumps({**settings, "curves": curves, "alone": alone}, indent=1))
    plot_robustness(curves, folder / "robustness.png", title, alone)


if __name__ == "__main__":
    main()
