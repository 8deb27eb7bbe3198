"""Score of a model on a split of a corpus: CCC, MSE and PCC over all labelled frames, and how single videos spread.

CCC = 2 s_xy / (s_x² + s_y² + (mean_x - mean_y)²), population variances, all videos of the split in one series. Beside it
what the authors' evaluation code would print: frames that are not annotated count there, and predictions are smoothed.

`--corrupt` says how the model holds when a modality does not. Kinds: missing, wrong (another video's track), shift, noise,
blur. `--corrupt audio=0.5`: half of the clips without sound. `--corrupt audio:noise=10 --corrupt video:blur=2`: sound with
noise at 10 dB, and crops blurred by 2 pixels.
"""

import argparse
import json
import sys
from pathlib import Path

from transformers import AutoModel, AutoProcessor

import jca  # noqa: F401  (registers the model)
from jca.corpus import SPLITS, load_corpus
from jca.corruption import parse_corruption
from jca.evaluation import parse_smoothing, predict
from jca.features import extract_features
from jca.protocol import authors_score, choose_smoothing, report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub repository of a model")
    parser.add_argument("data", help="prepared folder, folder of Aff-Wild2's release, or CSV file")
    parser.add_argument("--split", choices=SPLITS[:2], default="validation")
    parser.add_argument("--hop", type=int, default=8, help="frames between the clips that are computed (default: 8)")
    parser.add_argument(
        "--smoothing",
        type=lambda text: text if text == "train" else parse_smoothing(text),
        help='odd number of frames, "paper", or "train": what is best on the training split; none by default',
    )
    parser.add_argument("--cache", default="runs/cache", help="folder in which the encoders' features are kept")
    parser.add_argument(
        "--corrupt",
        action="append",
        default=[],
        metavar="MODALITY[:KIND]=AMOUNT",
        help="of the split that is scored; may be given more than once, and is done in that order",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what --corrupt draws (default: 0)")
    parser.add_argument("--output", help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.smoothing == "train" and arguments.split == "train":
        parser.error("a smoothing chosen on the split that is scored would flatter it")
    try:
        corruptions = [parse_corruption(text, arguments.seed) for text in arguments.corrupt]
    except ValueError as error:
        parser.error(str(error))
    model, processor = AutoModel.from_pretrained(arguments.model), AutoProcessor.from_pretrained(arguments.model)
    names, hop, smoothing = list(model.config.id2label.values()), arguments.hop, arguments.smoothing

    def load(split, corruptions=()):
        dataset = load_corpus(arguments.data, split)
        return dataset, extract_features(dataset, model, processor, hop, arguments.cache, corruptions=corruptions)

    try:
        dataset, features = load(arguments.split, corruptions)
        if smoothing == "train":
            _, training = load("train")
            training_labels = list(training.with_format("numpy")["labels"])
            times = list(training.with_format("numpy", dtype="float64")["times"])
            predictions = predict(model, training, processor, hop)
            smoothing = choose_smoothing(
                predictions, training_labels, times, names=names, frame_rate=processor.frame_rate
            )
    except ValueError as error:
        sys.exit(str(error))
    labels = list(features.with_format("numpy")["labels"])
    metrics = report(predict(model, features, processor, hop, smoothing), labels, dataset["subject"][:], names)
    authors = authors_score(predict(model, features, processor, hop), labels, names)
    print(f"{arguments.split} of {arguments.data}: {len(dataset)} videos, {metrics['frames']} labelled frames")
    if corruptions:
        print(f"corrupted: {', '.join(map(str, corruptions))}; seed {arguments.seed}")
    print(f"smoothing: {smoothing}\n\n| | CCC | MSE | PCC | CCC of a video | CCC of a subject | CCC, authors' code |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        official = " | ".join(f"{metrics[f'{kind}_{name}']:.3f}" for kind in ("ccc", "mse", "pcc"))
        spread = " | ".join(
            f"{metrics[f'{unit}_ccc_{name}_mean']:.3f} ± {metrics[f'{unit}_ccc_{name}_std']:.3f} "
            f"({metrics[f'{unit}_ccc_{name}_count']})"
            for unit in ("video", "subject")
        )
        print(f"| {name} | {official} | {spread} | {authors[f'ccc_{name}']:.3f} |")
    print(f"| mean | {metrics['ccc']:.3f} | | | | | {authors['ccc']:.3f} |")
    if arguments.output:
        settings = {"split": arguments.split, "hop": hop, "smoothing": smoothing}
        settings["corruptions"] = [vars(corruption) for corruption in corruptions]
        Path(arguments.output).write_text(json.dumps({**metrics, **settings, "authors": authors}, indent=1))


if __name__ == "__main__":
    main()
