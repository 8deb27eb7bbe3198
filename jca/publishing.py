"""A model's folder becomes a repository of the Hub, in one commit; what else a run left in it stays where it is."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RevisionNotFoundError

from jca.cards import write_card


# What none of these names is never sent: not checkpoints/, logs/, caches, optimizer states nor halves of files
PUBLISHED = (
    "*config.json",
    "*_jca.py",
    "*.safetensors",
    "*.safetensors.index.json",
    "*.onnx",
    "README.md",
    "LICENSE*",
    "metrics.json",
    ".eval_results/*.yaml",
    "pictures/*.png",
)
LARGE = 10_000_000  # bytes


class PublishingError(OSError):
    """A folder could not be published; the message is one for people, with the remedy."""


class Publication(NamedTuple):
    """What `publish` did."""

    url: str  # of the commit, or of the pull request
    commit: str
    changed: bool  # False if the repository had all of it


def find_files(folder: Path) -> list[Path]:
    """
    The files of a model's folder that are published, sorted.

    Raises:
        PublishingError: if the folder holds no model, or one of the files is a link that leads out of it.
    """
    root, files = folder.resolve(), []
    for path in (path for pattern in PUBLISHED for path in folder.glob(pattern) if path.name[0] != "."):
        if not path.resolve().is_relative_to(root):
            raise PublishingError(
                f"{path} leads out of the folder, to {path.resolve()}: put the file itself there, or take the link away."
            )
        if path.is_file():
            files.append(path)
    names = {path.name for path in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise PublishingError(
            f"{folder} holds no model, which is config.json and *.safetensors: name the folder that `save_pretrained` or "
            "training wrote."
        )
    return sorted(files)


def is_large(file: Path) -> bool:
    """Whether the Hub will keep a file in its large storage (LFS or Xet): binary ones, by Git's sign of them, and those
    over 10 MB. The Hub has the last word when it is asked."""
    with file.open("rb") as opened:
        return b"\0" in opened.read(512) or file.stat().st_size > LARGE


def prepare(folder: Path, repo_id: str) -> list[Path]:
    """
    The files that `publish` sends, sorted, among them the card README.md, which is written if there is none.

    Raises:
        PublishingError: as `find_files`, or if no card can be written.
    """
    files = find_files(folder)
    if folder / "README.md" in files:
        return files
    try:
        write_card(folder, repo_id if "/" in repo_id else None)
    except (OSError, ValueError) as error:
        raise PublishingError(
            f"No card could be written: {_line(error)}. Or write {folder / 'README.md'} yourself."
        ) from error
    return find_files(folder)


def publish(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    message: str = "Publish the model",
) -> Publication:
    """
    Send a model's folder to `HF_ENDPOINT` in one commit, only what the repository does not have; if it has everything,
    there is no commit. Weights in the repository that the folder does not have are removed, since they would be opened in
    the place of these. A repository that does not exist is made.

    Args:
        folder: of `save_pretrained` or training; gets a README.md if it has none.
        repo_id: as "name" or "organization/name".
        private: makes a private repository; one that is public already is refused.
        revision: branch, made from `main` if it does not exist, or "refs/pr/1" for a pull request that is open; `main` if
            left out.
        tag: given to the commit.
        create_pr: makes a pull request instead of a commit on the branch.
        message: of the commit.

    Raises:
        PublishingError: if it was not published, with the reason and the remedy.
    """
    files = prepare(folder, repo_id)
    api = HfApi()
    with explained(api.endpoint, repo_id):
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise PublishingError(
                f"{repo_id} is there already and public: make it private in its settings, or publish without `--private`."
            )
        if revision and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        before = api.model_info(repo_id, revision=revision)
        operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
        names = {operation.path_in_repo for operation in operations}
        there = {file.rfilename for file in before.siblings}
        stale = [name for name in there - names if re.fullmatch(r"model[^/]*\.safetensors(\.index\.json)?", name)]
        commit = api.create_commit(
            repo_id,
            [*operations, *map(CommitOperationDelete, sorted(stale))],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=before.sha,
        )
        if tag:
            _tag(api, repo_id, tag, commit.oid)
    return Publication(commit.pr_url or commit.commit_url, commit.oid, commit.oid != before.sha)


def _tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True)
    target = next(ref.target_commit for ref in api.list_repo_refs(repo_id).tags if ref.name == tag)
    if target != commit:
        raise PublishingError(
            f"Commit {commit} of {repo_id} is published without a tag, since {tag} is the name of {target}: choose another "
            "and run the same command again."
        )


@contextmanager
def explained(endpoint: str, repo_id: str) -> Iterator[None]:
    """
    Raises:
        PublishingError: for whatever Hub, connection or library raise in it.
    """
    try:
        yield
    except PublishingError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, HTTPError) as error:
        wrapped = isinstance(error, RuntimeError) and error.__cause__  # as the library does what an upload raised
        raise PublishingError(_explanation(wrapped or error, endpoint, repo_id)) from error


def _explanation(error: BaseException, endpoint: str, repo_id: str) -> str:
    again = "run the same command again: what has arrived is not sent twice."
    match error:
        case OfflineModeIsEnabled():
            return f"HF_HUB_OFFLINE is set, so that nothing can be sent to {endpoint}: unset it and {again}"
        case RevisionNotFoundError():
            return f"{repo_id} has no such revision: name a branch that exists, or leave it out for main."
        case HfHubHTTPError():
            said = f" ({_line(error.server_message)})" if error.server_message else ""
            match error.response.status_code:
                case 401:
                    return (
                        f"{endpoint} does not know you{said}: run `hf auth login`, or set HF_TOKEN to a token that may "
                        "write."
                    )
                case 403:
                    return (
                        f"Your token may not write to {repo_id}{said}: take one that may, name a repository of your own, or "
                        "propose it by `--create_pr`."
                    )
                case 404:
                    return (
                        f"{endpoint} shows no {repo_id} to your token{said}: see to its name and to the token's rights."
                    )
                case 409 | 412:
                    return (
                        f"Somebody wrote to {repo_id} meanwhile, and nothing was published: look at their commit, then "
                        f"{again}"
                    )
                case 413:
                    return (
                        f"{endpoint} does not take so much at once{said}: save the model in smaller files, "
                        '`model.save_pretrained(folder, max_shard_size="1GB")`, take pictures away, and publish again.'
                    )
                case status:
                    return f"{endpoint} answered {status}{said}: if it is not your doing, wait and {again}"
        case ConnectionError() if "xet-write-token" in str(error):
            return f"{endpoint} takes no uploads by Xet ({_line(error)}): set HF_HUB_DISABLE_XET=1 and {again}"
        case HTTPError() | ConnectionError() | RuntimeError():  # the last are of Xet
            return f"The connection to {endpoint} broke ({_line(error)}): {again}"
        case JSONDecodeError() | KeyError():
            return f"{endpoint} does not answer as a Hub does ({_line(error)}): see to HF_ENDPOINT."
    return f"{repo_id} was not published: {_line(error)}."


def _line(text: object) -> str:
    return re.sub(r"\s+", " ", str(text)).strip(" .")
