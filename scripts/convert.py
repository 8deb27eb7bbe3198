"""Checkpoints of the authors' code, and of the encoders it uses, to one folder that `AutoModel.from_pretrained` opens.

The two-stream encoders, R(2+1)D-18, ResNet-18, Inception-I3D, its TCN, joint cross-attention, dense co-attention: alone or
several files that make one model. The folder's README.md says what became of each.
"""

import argparse

from jca.conversion import LABELS, convert


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="checkpoint that PyTorch saved")
    parser.add_argument("--output", required=True, help="folder to make")
    parser.add_argument(
        "--label", choices=LABELS, action="append", default=[], help="of each file with one output, in their order"
    )
    arguments = parser.parse_args()
    for line in convert(arguments.files, arguments.output, arguments.label):
        print(line)
    print(f"model: {arguments.output}")


if __name__ == "__main__":
    main()
