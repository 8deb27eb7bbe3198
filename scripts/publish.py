"""A model to the Hub: weights, processor, code, card, scores and pictures in one commit, and nothing else of the folder.
Or the synthetic corpus, which becomes a data set: `make demo HUB=name/jca-synthetic` begins with it elsewhere.

A card that was written by this is written anew, one that was edited is left as it is; it must have the metrics' figures.
What the repository has already is not sent again, so that the same command completes what was cut off. The token is that of
`hf auth login` or HF_TOKEN, the place HF_ENDPOINT.
"""

import argparse
import sys
from pathlib import Path

from jca.publishing import PublishingError, is_large, prepare, publish


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a model, which gets a card, README.md; or of a synthetic corpus")
    parser.add_argument("repo_id", help="as name or organization/name")
    parser.add_argument("--private", action="store_true", help="make a private repository")
    parser.add_argument("--revision", help="branch, or refs/pr/1 for a pull request that is open (default: main)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--tag", help="of the commit, by which others pin it")
    kind.add_argument("--create_pr", action="store_true", help="make a pull request instead of a commit")
    parser.add_argument("--message", help="of the commit (default: Publish the model)")
    parser.add_argument(
        "--dry-run", action="store_true", help="write the card and list what would be sent, without asking the Hub"
    )
    arguments = vars(parser.parse_args())
    folder, repo_id, dry_run = (arguments.pop(name) for name in ("folder", "repo_id", "dry_run"))
    try:
        if dry_run:
            for file in prepare(folder, repo_id):
                large = "  LFS" if is_large(file) else ""
                print(f"{file.upload_info.size:>14,}  {file.path_in_repo}{large}")
            return
        publication = publish(folder, repo_id, **arguments)
    except PublishingError as error:
        sys.exit(str(error))
    print(f"{'published' if publication.changed else 'nothing new'}: {publication.url}")


if __name__ == "__main__":
    main()
