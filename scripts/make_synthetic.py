"""Make a synthetic corpus: drawn faces and artificial voices in real media files, laid out like Aff-Wild2.

Nothing about real people can be concluded from it. With --hub it is fetched instead, from where scripts/publish.py sent it.
"""

import argparse
import json
import sys
from pathlib import Path

from jca.fetching import fetch_synthetic
from jca.synthetic import SETTINGS_FILE, make_synthetic


def main():
    help_format = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=help_format)
    parser.add_argument("root", type=Path, help="folder to make, or to complete")
    parser.add_argument(
        "--hub", metavar="NAME/DATASET", help="fetch this data set of the Hub, which has its own settings"
    )
    parser.add_argument("--num_train", type=int, default=32, help="videos, each of its own subject")
    parser.add_argument("--num_validation", type=int, default=10, help="videos of other subjects")
    parser.add_argument("--seconds", type=float, default=32.0, help="length of each video")
    parser.add_argument("--fps", type=int, default=30, help="frames a second")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another corpus")
    parser.add_argument("--num_proc", type=int, default=2, help="processes; the files are the same")
    settings = vars(parser.parse_args())
    root, hub = settings.pop("root"), settings.pop("hub")
    given = [f"--{name}" for name, value in settings.items() if value != parser.get_default(name)]
    if hub and given:
        parser.error(f"{hub} has its own settings: leave out {', '.join(given)}")
    try:
        if hub:
            fetch_synthetic(hub, root)
        else:
            make_synthetic(root, **settings)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    made = json.loads((root / SETTINGS_FILE).read_text())
    print(f"{root}: a synthetic corpus of {made['num_train']} + {made['num_validation']} videos")


if __name__ == "__main__":
    main()
