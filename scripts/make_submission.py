"""A model's predictions for the test split of Aff-Wild2 as the one file that the challenge's organisers take."""

import argparse
import sys

from transformers import AutoModel, AutoProcessor

import jca  # noqa: F401  (registers the model)
from jca.corpus import CorpusError, load_corpus
from jca.evaluation import parse_smoothing, predict
from jca.features import extract_features
from jca.submission import validate_submission, write_submission


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or Hub repository of a model")
    parser.add_argument("data", help="folder of the release, or prepared folder with the test split")
    parser.add_argument("output", help="file to write")
    parser.add_argument("--sample", help="the organisers' sample file, whose rows are written in its order")
    parser.add_argument("--hop", type=int, default=8, help="frames between the clips that are computed (default: 8)")
    parser.add_argument("--smoothing", type=parse_smoothing, help='odd number of frames, or "paper"; none by default')
    parser.add_argument("--cache", default="runs/cache", help="folder in which the encoders' features are kept")
    arguments = parser.parse_args()
    model, processor = AutoModel.from_pretrained(arguments.model), AutoProcessor.from_pretrained(arguments.model)
    try:
        dataset = load_corpus(arguments.data, "test")
        features = extract_features(dataset, model, processor, arguments.hop, arguments.cache)
        predictions = predict(model, features, processor, arguments.hop, arguments.smoothing)
        by_video = dict(zip(dataset["video_id"][:], predictions, strict=True))
        for line in write_submission(by_video, arguments.output, arguments.sample):
            print(line)
    except CorpusError as error:
        sys.exit(str(error))
    if problems := validate_submission(arguments.output, arguments.sample):
        sys.exit("\n".join(problems))
    print(f"submission: {arguments.output}, {len(by_video)} videos")


if __name__ == "__main__":
    main()
