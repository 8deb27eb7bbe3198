"""Make a synthetic corpus: drawn faces and artificial voices in real media files, laid out like Aff-Wild2.

Nothing about real people can be concluded from it.
"""

import argparse

from jca.synthetic import make_synthetic


def main():
    help_format = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=help_format)
    parser.add_argument("root", help="folder to make, or to complete")
    parser.add_argument("--num_train", type=int, default=32, help="videos, each of its own subject")
    parser.add_argument("--num_validation", type=int, default=10, help="videos of other subjects")
    parser.add_argument("--seconds", type=float, default=32.0, help="length of each video")
    parser.add_argument("--fps", type=int, default=30, help="frames a second")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another corpus")
    parser.add_argument("--num_proc", type=int, default=2, help="processes; the files are the same")
    arguments = parser.parse_args()
    root = make_synthetic(**vars(arguments))
    print(f"{root}: a synthetic corpus of {arguments.num_train} + {arguments.num_validation} videos")


if __name__ == "__main__":
    main()
