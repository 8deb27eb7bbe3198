"""A model's encoders over every clip of a corpus, once: `accelerate launch scripts/extract_features.py MODEL DATA CACHE`.

Any number of processes; goes on where it was stopped.
"""

import argparse
import sys
from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from transformers import AutoModel, AutoProcessor

import jca  # noqa: F401  (registers the model)
from jca.corpus import SPLITS, CorpusError, load_corpus
from jca.features import extract_features


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub repository of a model")
    parser.add_argument("data", help="prepared folder, folder of Aff-Wild2's release, or CSV file")
    parser.add_argument("cache", help="folder in which the features are kept")
    parser.add_argument("--split", choices=SPLITS, action="append", help="these alone; train and validation without it")
    parser.add_argument("--hop", type=int, default=8, help="frames between the clips that are computed (default: 8)")
    parser.add_argument(
        "--num_workers", type=int, default=0, help="processes that read ahead, for each that encodes (default: 0)"
    )
    arguments = parser.parse_args()
    # the last process may be at a long video when the others are done
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])
    model, processor = AutoModel.from_pretrained(arguments.model), AutoProcessor.from_pretrained(arguments.model)
    for split in arguments.split or SPLITS[:2]:
        try:
            dataset = load_corpus(arguments.data, split)
            features = extract_features(
                dataset, model, processor, arguments.hop, arguments.cache, arguments.num_workers
            )
        except CorpusError as error:
            sys.exit(str(error))
        clips = sum(len(ends) for ends in features.with_format("numpy")["end_frames"])
        accelerator.print(f"{split}: {len(features)} videos, {clips} clips")


if __name__ == "__main__":
    main()
