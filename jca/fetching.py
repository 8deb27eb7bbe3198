"""The synthetic corpus comes back from the Hub."""

import json
import re
import shutil
import tarfile
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    XetDownloadError,
)

from jca.corpus import write_whole
from jca.publishing import in_one_line
from jca.synthetic import ORIGIN_FILE, SETTINGS_FILE, claim, read_settings, video_files, videos


ANOTHER = "Name a data set that scripts/publish.py sent, or make the corpus here, without the Hub."


class FetchingError(OSError):
    """A corpus could not be fetched; the message is one for people, with the remedy."""


def fetch_synthetic(repo_id: str, root: str | Path) -> Path:
    """
    Fetch a synthetic corpus that `publish` sent, file by file as `make_synthetic` made it. Videos that are there are kept,
    and a run that was stopped goes on; a corpus that is there and complete asks for no connection.

    Args:
        repo_id: data set of the Hub; its settings are those of the corpus.
        root: folder to make or to complete. What comes of the Hub is written under names that are known before.

    Returns:
        `root`.

    Raises:
        FetchingError: if it can not be fetched, or is no synthetic corpus.
        ValueError: if `root` holds a corpus with other settings, or other files.
    """
    root, api = Path(root), HfApi()
    origin = root / ORIGIN_FILE
    here = origin.exists() and json.loads(origin.read_text())["hub"] == repo_id
    if here and not _missing(root, read_settings(root / SETTINGS_FILE)):
        return root
    staging = root / ".hub"
    try:
        commit = api.dataset_info(repo_id).sha
        options = {"repo_type": "dataset", "revision": commit}
        settings = _settings_of(api.hf_hub_download(repo_id, SETTINGS_FILE, **options), repo_id)
        claim(root, settings)
        missing = _missing(root, settings)
        files = [path for name, split in missing.items() for path in video_files(Path(), name, split)]
        names = [path.as_posix() if path.suffix else f"{path.as_posix()}.tar" for path in files]
        if names:
            api.snapshot_download(repo_id, local_dir=staging, allow_patterns=names, **options)
    except (OSError, HTTPError, RuntimeError, XetDownloadError) as error:
        raise FetchingError(_why_not_fetched(error, in_one_line(api.endpoint), repo_id)) from error
    for name, split in missing.items():
        _place(staging, root, repo_id, name, split)
    write_whole(origin, lambda part: part.write_text(json.dumps({"hub": repo_id, "revision": commit}) + "\n"))
    shutil.rmtree(staging, ignore_errors=True)
    return root


def _why_not_fetched(error: BaseException, endpoint: str, repo_id: str) -> str:
    match error:
        case OfflineModeIsEnabled():
            return f"HF_HUB_OFFLINE is set, so that {repo_id} can not be fetched: unset it."
        case RemoteEntryNotFoundError():
            return f"{repo_id} is no synthetic corpus: there is no {SETTINGS_FILE} in it. {ANOTHER}"
        case HfHubHTTPError() if error.response.status_code in (401, 403, 404):
            return (
                f"{endpoint} shows no data set {repo_id}: see to its name; if it is private, run `hf auth login` or set "
                "HF_TOKEN."
            )
    return (
        f"{repo_id} could not be fetched from {endpoint} ({in_one_line(error)}): see to the network and to HF_ENDPOINT "
        "and run the same command again, what has arrived is not fetched twice."
    )


def _settings_of(file: str, repo_id: str) -> dict:
    try:
        return read_settings(Path(file))
    except ValueError as error:
        raise FetchingError(
            f"{repo_id} is no synthetic corpus: its {SETTINGS_FILE} is not what scripts/make_synthetic.py writes. {ANOTHER}"
        ) from error


def _missing(root: Path, settings: dict) -> dict[str, str]:
    return {name: split for name, split in videos(settings).items() if not video_files(root, name, split)[2].exists()}


def _place(staging: Path, root: Path, repo_id: str, name: str, split: str) -> None:
    """One video from what was fetched to its place; the annotation last, which says that the others are there."""
    (media, crops, annotation), places = (video_files(folder, name, split) for folder in (staging, root))
    archive, part = crops.with_suffix(".tar"), crops.with_suffix(".part")
    for folder in (part, places[1]):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        part.mkdir()
        with tarfile.open(archive, "r:") as tar:
            for member in tar:  # nothing but the pictures, under their own names
                if not re.fullmatch(r"\d{5,}\.jpg", member.name) or not member.isreg() or member.issparse():
                    raise tarfile.ReadError(f"{member.name[:80]!r} is no face crop")
                (part / member.name).write_bytes(tar.extractfile(member).read())
        media.replace(places[0])
        part.replace(places[1])
        annotation.replace(places[2])
    except (FileNotFoundError, tarfile.TarError) as error:
        archive.unlink(missing_ok=True)  # to be fetched anew
        raise FetchingError(
            f"{repo_id} is not complete, or damaged, at {name} ({in_one_line(error)}): whoever sent it is to run "
            "scripts/publish.py again, or make the corpus here, without the Hub."
        ) from error
