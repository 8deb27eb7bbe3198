"""A model as ONNX graphs, which ONNX Runtime or OpenVINO run: a folder that goes wherever a model's folder does.

With `--calibrate` convolutions are computed in int8, in the ranges that these videos show. Needs `pip install 'jca[onnx]'`,
and `'jca[openvino]'` for that backend.
"""

import argparse
import sys

from transformers import AutoModel, AutoProcessor

from jca.backends import DTYPES, export
from jca.prediction import find_sources


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub repository of a model")
    parser.add_argument("output", help="folder to write")
    parser.add_argument(
        "--backend", choices=DTYPES, default="onnx", help="what runs it where nothing else is asked for (default: onnx)"
    )
    parser.add_argument(
        "--calibrate", nargs="+", metavar="FILE_OR_FOLDER", help="videos like those that the model will see, for int8"
    )
    arguments = parser.parse_args()
    try:
        model, processor = AutoModel.from_pretrained(arguments.model), AutoProcessor.from_pretrained(arguments.model)
        videos = arguments.calibrate and list(find_sources(arguments.calibrate))
        differences = export(model, processor, arguments.output, videos, arguments.backend)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(str(error))
    for modality, difference in differences.items():
        print(f"{modality}_encoder.onnx: its features differ from the model's by {difference:.1e} of their length")
    print(f"exported: {arguments.output}")


if __name__ == "__main__":
    main()
