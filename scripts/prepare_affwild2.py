"""Aff-Wild2's release, or any corpus as a CSV file, to a folder with all that training reads: one file for each video.

Goes on where it was stopped. `--check` compares a prepared folder with its hashes instead.
"""

import argparse
import sys
from pathlib import Path

from jca.corpus import SPLITS, CorpusError, load_corpus
from jca.plots import plot_labels
from jca.preparation import check_prepared, corpus_record, load_prepared, prepare
from processing_jca import FACES, JCAFeatureExtractor, JCAProcessor, JCAVideoProcessor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of the release, or CSV file; with --check the prepared folder")
    parser.add_argument("folder", nargs="?", help="folder to make, or to complete")
    parser.add_argument("--check", action="store_true", help="compare all files with their hashes and change nothing")
    parser.add_argument("--split", choices=SPLITS, action="append", help="these alone; train and validation without it")
    parser.add_argument("--num_proc", type=int, default=2, help="processes that share the videos (default: 2)")
    parser.add_argument("--sampling_rate", type=int, default=44100, help="of the sound in Hz (default: 44100)")
    parser.add_argument(
        "--faces", choices=FACES, default="detect", help="what frames are, where the corpus has no face crops"
    )
    parser.add_argument("--size", type=int, default=112, help="of those crops in pixels (default: 112)")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds by which annotators are late (default: 0)")
    parser.add_argument(
        "--on_error", choices=("raise", "skip"), default="raise", help="skip: use what is left of a corpus with faults"
    )
    arguments = parser.parse_args()
    try:
        if arguments.check:
            problems = check_prepared(arguments.data, arguments.num_proc)
            if problems:
                raise CorpusError(arguments.data, problems)
            print(f"{arguments.data}: every file is there and as its hash says")
            return
        if arguments.folder is None:
            parser.error("name the folder to make")
        processor = JCAProcessor(
            JCAFeatureExtractor(sampling_rate=arguments.sampling_rate),
            JCAVideoProcessor(size=arguments.size, faces=arguments.faces),
        )
        options = {"on_error": arguments.on_error, "delay": arguments.delay}
        splits = {s: load_corpus(arguments.data, s, **options) for s in arguments.split or SPLITS[:2]}
        corpus = {split: corpus_record(arguments.data, split) for split in splits}
        index = prepare(splits, arguments.folder, processor, arguments.num_proc, arguments.on_error, corpus)
    except CorpusError as error:
        sys.exit(str(error))
    print("| split | videos | frames | labelled | hours | without a face crop |\n|---|---|---|---|---|---|")
    for split in splits:
        files = index[split].values()
        total = {name: sum(file[name] for file in files) for name in ("frames", "labelled", "seconds", "missing_crops")}
        missing = total["missing_crops"] / max(total["frames"], 1)
        print(
            f"| {split} | {len(files)} | {total['frames']:,} | {total['labelled']:,} | {total['seconds'] / 3600:.2f} "
            f"| {total['missing_crops']:,} ({missing:.1%}) |"
        )
    for row in (row for split in splits for row in load_prepared(arguments.folder, split)):
        for note in row["notes"]:
            print(f"{row['video_id']}: {note}")
    print(f"prepared: {arguments.folder}")
    if labelled := {split: load_prepared(arguments.folder, split) for split in splits if split != "test"}:
        plot_labels(labelled, Path(arguments.folder) / "labels.png")
        print(f"picture: {Path(arguments.folder) / 'labels.png'}")


if __name__ == "__main__":
    main()
