"""Valence and arousal of every face in every frame of videos, as files: a table, and whatever else is asked for.

`accelerate launch -m jca` shares the videos among processes. The exit code is 1 if a video could not be read or ended early.
"""

import argparse
import json
import os
import sys
from datetime import timedelta

from accelerate import PartialState
from accelerate.utils import gather_object

from jca.affwild2 import read_annotation
from jca.backends import DTYPES, load_pipeline
from jca.corpus import split_by_length
from jca.evaluation import parse_smoothing
from jca.prediction import SUFFIXES, check_names, find_sources, predict_files
from processing_jca import FACES


def main() -> None:
    """The command `jca-predict`, which `scripts/predict.py` is in a clone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="FILE_OR_FOLDER", help="videos, folders of them, or URLs")
    parser.add_argument("--model", required=True, help="folder or Hub repository of a model")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the files, NAME.csv for NAME.mp4")
    parser.add_argument(
        "--save", nargs="+", choices=SUFFIXES, default=["csv"], metavar="KIND", help=f"any of {', '.join(SUFFIXES)}"
    )
    parser.add_argument("--faces", choices=FACES, help="what frames are; what the model's processor says without it")
    parser.add_argument(
        "--backend",
        choices=("torch", *DTYPES),
        help="torch: bfloat16 where the machine has it; onnx, openvino: of a folder of scripts/export.py",
    )
    parser.add_argument("--hop", type=int, default=8, help="frames between the clips that are computed (default: 8)")
    parser.add_argument("--smoothing", type=parse_smoothing, help='odd number of frames, or "paper"; none by default')
    parser.add_argument(
        "--explain", action="store_true", help="plot how much is owed to face and voice (a second pass)"
    )
    parser.add_argument("--annotation", help="Aff-Wild2 annotation of the one video, plotted beside the prediction")
    parser.add_argument("--overwrite", action="store_true", help="make files anew that are there")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each video")
    parser.add_argument("--quiet", action="store_true", help="print nothing but what went wrong")
    arguments = parser.parse_args()
    if arguments.annotation and len(arguments.sources) > 1:
        parser.error("--annotation is of one video: give one")
    if (arguments.annotation or arguments.explain) and "plot" not in arguments.save:
        parser.error("--annotation and --explain are drawn into the plot: add --save plot")
    state = PartialState(timeout=timedelta(days=1))  # videos may be long, and the others wait
    try:
        sources = find_sources(arguments.sources)
        check_names(sources, arguments.save)  # of all processes
        pipe = load_pipeline(arguments.model, arguments.backend, state.device)
        sizes = [os.path.getsize(source) if os.path.exists(source) else 0 for source in sources]
        mine = [list(sources)[index] for index in split_by_length(sizes, state.num_processes)[state.process_index]]
        results = predict_files(
            pipe,
            {source: sources[source] for source in mine},
            arguments.out,
            arguments.save,
            hop=arguments.hop,
            smoothing=arguments.smoothing,
            faces=arguments.faces,
            backend=arguments.backend,
            overwrite=arguments.overwrite,
            quiet=arguments.quiet or arguments.json,
            explain=arguments.explain,
            labels=read_annotation(arguments.annotation) if arguments.annotation else None,
        )
        bad = []
        for result in results:
            if arguments.json:
                print(json.dumps(result._asdict()), flush=True)
            elif not arguments.quiet:
                made = f", {result.rows} rows, {result.speed:.1f} x real time" if result.rows else ""
                print(f"{result.source}: {result.status}{made}", flush=True)
            bad += [result] if result.reason else []
    except (ValueError, OSError, ImportError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("\nstopped; what is finished stays, and the same command goes on from there")
    bad = gather_object(bad)
    if bad and state.is_main_process:
        print(f"{len(bad)} of {len(sources)} videos:", file=sys.stderr)
        for result in bad:
            print(f"  {result.source}: {result.status}: {result.reason}", file=sys.stderr)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
