"""A model's folder becomes a repository of the Hub, in one commit; what else a run left in it stays where it is. The
synthetic corpus goes there too."""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from jca.backends import CHECK, WEIGHTS, ExportedJCAConfig
from jca.cards import dataset_card, differing_figures, eval_results_file, is_edited, public_metrics, write_card
from jca.synthetic import SETTINGS_FILE, read_settings, video_files, videos


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
EVAL_RESULTS = ".eval_results/jca.yaml"  # made of the metrics, where they are of a data set of the Hub
# What a repository has of another model or corpus, and would be opened or shown in the place of what is sent
STALE = re.compile(
    r"model[^/]*\.safetensors(\.index\.json)?|(fusion|check)\.safetensors|(video_encoder|audio_encoder|fusion)\.onnx"
    r"|\w+_jca\.py|metrics\.json|\.eval_results/jca\.yaml|pictures/epoch-\d+\.png"
    r"|(batch1|cropped_aligned|VA_Est.+)/synthetic-[^/]+"
)
LARGE = 10_000_000  # bytes
SAVE_AGAIN = "save it again by `save_pretrained` of the model and of the processor, which put their code beside them."


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
        PublishingError: if the folder holds no model, or not all of its weights and code, or one of the files is a link that
            leads out of it.
    """
    paths = (path for pattern in PUBLISHED for path in folder.glob(pattern) if path.name[0] != ".")
    files = sorted(path for path in paths if _inside(path, folder).is_file())
    there = {path.name: path for path in files if path.parent == folder}
    if "config.json" not in there or not any(name.endswith(".safetensors") for name in there):
        raise PublishingError(
            f"{folder} holds no model, which is config.json and *.safetensors: name the folder that `save_pretrained` or "
            "training wrote."
        )
    if missing := sorted(_needed_files(there) - set(there)):
        raise PublishingError(
            f"{folder} lacks {', '.join(missing)}, without which nobody opens the model: {SAVE_AGAIN}"
        )
    return files


def _needed_files(files: dict[str, Path]) -> set[str]:
    """
    Names of the files without which a model is not opened: its weights, and the code that its configurations name, with
    what that imports.

    Args:
        files: those of its folder, by name.
    """
    needed, waiting = {"processor_config.json"}, []
    with _as_saved(files["config.json"]) as config:
        if config["model_type"] == ExportedJCAConfig.model_type:  # has no code of its own
            needed |= {WEIGHTS, CHECK, *(f"{modality}_encoder.onnx" for modality in config["modalities"])}
        else:
            waiting += _modules(config, {"AutoConfig", "AutoModel"})
            if SAFE_WEIGHTS_NAME in files or SAFE_WEIGHTS_INDEX_NAME not in files:
                needed.add(SAFE_WEIGHTS_NAME)
            else:
                with _as_saved(files[SAFE_WEIGHTS_INDEX_NAME]) as index:
                    needed |= set(index["weight_map"].values())
    if "processor_config.json" in files:
        with _as_saved(files["processor_config.json"]) as config:
            waiting += _modules(config, {"AutoProcessor"})
    while waiting:
        name = f"{waiting.pop()}.py"
        if name in files and name not in needed:
            try:
                waiting += get_relative_imports(files[name])
            except ValueError as error:
                raise PublishingError(
                    f"{files[name]} is no text in UTF-8 ({in_one_line(error)}): {SAVE_AGAIN}"
                ) from error
        needed.add(name)
    return needed


@contextmanager
def _as_saved(path: Path) -> Iterator[dict[str, Any]]:
    """
    The content of a JSON file.

    Raises:
        PublishingError: if it is none, or lacks what is looked for in the block.
    """
    try:
        yield json.loads(path.read_text("utf-8"))
    except PublishingError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PublishingError(f"{path} is not as `save_pretrained` writes it: {SAVE_AGAIN}") from error


def _modules(config: dict[str, Any], kinds: set[str]) -> list[str]:
    """The modules that a configuration and those within it name; classes of `kinds` are among theirs."""
    classes = [config["auto_map"][kind] for kind in kinds]
    for inner in [config, *(value for value in config.values() if isinstance(value, dict))]:
        classes += inner.get("auto_map", {}).values()
        classes += [pipeline["impl"] for pipeline in inner.get("custom_pipelines", {}).values()]
    modules = []
    for name in classes:
        if "--" in name:
            raise PublishingError(
                f"The code of the model is in another repository, {name.split('--')[0]}, of which no revision is pinned: "
                f"{SAVE_AGAIN}"
            )
        module, _ = name.split(".")
        modules.append(module)
    return modules


def _inside(path: Path, folder: Path) -> Path:
    try:
        place = path.resolve()
    except (OSError, RuntimeError) as error:
        raise PublishingError(f"{path} can not be followed ({in_one_line(error)}): take the link away.") from error
    if not place.is_relative_to(folder.resolve()):
        raise PublishingError(
            f"{path} leads out of the folder, to {place}: put the file itself there, or take the link away."
        )
    return path


def is_large(file: CommitOperationAdd) -> bool:
    """Whether the Hub will keep a file in its large storage (LFS or Xet): binary ones, by Git's sign of them, and those
    over 10 MB. The Hub has the last word when it is asked."""
    return b"\0" in file.upload_info.sample or file.upload_info.size > LARGE


def is_corpus(folder: Path) -> bool:
    """Whether a folder holds a synthetic corpus, and no model."""
    return (folder / SETTINGS_FILE).exists()


def prepare(folder: Path, repo_id: str) -> list[CommitOperationAdd]:
    """
    The files that `publish` sends, sorted.

    Of a model: as `find_files`, with the card README.md, which is written anew unless a hand wrote or edited it; the
    metrics without the paths of this machine; and `.eval_results/jca.yaml` where the corpus is of the Hub. Of a synthetic
    corpus: the face crops of a video as one archive, since the Hub wants fewer files than there are frames.

    Raises:
        PublishingError: as `find_files`; if `repo_id` can be no name of a repository; if no card can be written, or an
            edited one has other figures than the metrics; if a corpus is not complete.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishingError(f"{repo_id} was not published: {in_one_line(error)}.") from error
    files = _corpus_files(folder, repo_id) if is_corpus(folder) else _model_files(folder, repo_id)
    return [CommitOperationAdd(name, content) for name, content in sorted(files.items())]


def _model_files(folder: Path, repo_id: str) -> dict[str, Path | bytes]:
    find_files(folder)
    card, metrics = folder / "README.md", folder / "metrics.json"
    try:
        content = json.loads(metrics.read_text("utf-8")) if metrics.exists() else {}
    except (OSError, ValueError) as error:
        raise PublishingError(f"{metrics} is no JSON ({in_one_line(error)}): correct it, or take it away.") from error
    try:
        edited = is_edited(card)
    except (OSError, ValueError) as error:
        raise PublishingError(f"{card} is no text in UTF-8 ({in_one_line(error)}): save it as that.") from error
    if edited:
        try:
            wrong = differing_figures(folder)
        except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
            raise PublishingError(
                f"The metadata of {card} can not be read, or compared with {metrics.name}: {in_one_line(error)}. Correct "
                "it, or move the card elsewhere and a new one is written."
            ) from error
        if wrong:
            raise PublishingError(
                f"{card} was edited by hand, and has other figures than {metrics.name}: {'; '.join(wrong)}. Write those, or "
                "move the card elsewhere and a new one is written."
            )
    else:
        try:
            write_card(folder, repo_id if "/" in repo_id else None)
        except (OSError, ValueError) as error:
            raise PublishingError(
                f"No card could be written: {in_one_line(error)}. Or write {card} yourself."
            ) from error
    files: dict[str, Path | bytes] = {path.relative_to(folder).as_posix(): path for path in find_files(folder)}
    if (public := public_metrics(content)) != content:
        files[metrics.name] = json.dumps(public, indent=1).encode()
    try:
        results = eval_results_file(content) if isinstance(content, dict) else None
    except (AttributeError, KeyError, TypeError) as error:
        raise PublishingError(f"{metrics} is not what training left ({in_one_line(error)}): take it away.") from error
    if results:
        files.setdefault(EVAL_RESULTS, results.encode())
    return files


def _corpus_files(folder: Path, repo_id: str) -> dict[str, Path | bytes]:
    try:
        settings, card = read_settings(_inside(folder / SETTINGS_FILE, folder)), dataset_card(folder, repo_id)
    except ValueError as error:
        raise PublishingError(str(error)) from error
    files: dict[str, Path | bytes] = {"README.md": str(card).encode(), SETTINGS_FILE: folder / SETTINGS_FILE}
    for name, split in videos(settings).items():
        media, crops, annotation = (_inside(path, folder) for path in video_files(folder, name, split))
        if not (media.exists() and crops.exists() and annotation.exists()):
            raise PublishingError(
                f"{folder} is not complete, {name} is missing: scripts/make_synthetic.py goes on with it."
            )
        for path in (media, annotation):
            files[path.relative_to(folder).as_posix()] = path
        files[f"{crops.relative_to(folder).as_posix()}.tar"] = _pack(crops)
    return files


def _pack(crops: Path) -> bytes:
    """An archive that is the same whenever and wherever it is made."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(crops.glob("*.jpg")):
            content = _inside(path, crops).read_bytes()
            member = tarfile.TarInfo(path.name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def publish(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
) -> Publication:
    """
    Send the folder of a model, or of a synthetic corpus, which becomes a data set, to `HF_ENDPOINT` in one commit, only what
    the repository does not have; if it has everything, there is no commit. Weights, code, figures or videos in the
    repository that the folder does not have are removed, since they would be taken for those of what is sent. A repository
    that does not exist is made.

    Args:
        folder: of `save_pretrained` or training; gets a README.md if it has none. Or of `make_synthetic`.
        repo_id: as "name" or "organization/name".
        private: makes a private repository; one that is public already is refused.
        revision: branch, made from `main` if it does not exist, or "refs/pr/1" for a pull request that is open; `main` if
            left out or empty.
        tag: given to the commit.
        create_pr: makes a pull request instead of a commit on the branch.
        message: of the commit.

    Raises:
        PublishingError: if it was not published, with the reason and the remedy.
    """
    operations, revision = prepare(folder, repo_id), revision or None
    api, kind = HfApi(), "dataset" if is_corpus(folder) else "model"
    with explained(in_one_line(api.endpoint), repo_id):
        whole = api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True).repo_id
        if whole != repo_id:  # cards name it
            repo_id, operations = whole, prepare(folder, whole)
        if private and not api.repo_info(repo_id, repo_type=kind).private:
            raise PublishingError(
                f"{repo_id} is there already and public: make it private in its settings, or publish without `--private`."
            )
        if revision and not create_pr and not revision.startswith("refs/"):
            tags = [ref.name for ref in api.list_repo_refs(repo_id, repo_type=kind).tags]
            if revision in tags or re.fullmatch("[0-9a-f]{40}", revision):
                raise PublishingError(
                    f"{revision} is a tag or a commit of {repo_id}, and no branch: name one in its place, or give the new "
                    "commit a tag of its own."
                )
            api.create_branch(repo_id, repo_type=kind, branch=revision, exist_ok=True)
        before = api.repo_info(repo_id, repo_type=kind, revision=revision)
        names = {operation.path_in_repo for operation in operations}
        there = {file.rfilename for file in before.siblings}
        stale = [name for name in there - names if STALE.fullmatch(name)]
        commit = api.create_commit(
            repo_id,
            [*operations, *map(CommitOperationDelete, sorted(stale))],
            repo_type=kind,
            commit_message=message or f"Publish the {'corpus' if kind == 'dataset' else 'model'}",
            revision=revision,
            create_pr=create_pr,
            parent_commit=before.sha,
        )
        if tag:
            _tag(api, repo_id, kind, tag, commit.oid)
    return Publication(in_one_line(commit.pr_url or commit.commit_url), commit.oid, commit.oid != before.sha)


def _tag(api: HfApi, repo_id: str, kind: str, tag: str, commit: str) -> None:
    api.create_tag(repo_id, repo_type=kind, tag=tag, revision=commit, exist_ok=True)
    refs = api.list_repo_refs(repo_id, repo_type=kind)
    target = next(ref.target_commit for ref in refs.tags if ref.name == tag)
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
        case UnicodeEncodeError():  # in the header of a request
            return "HF_TOKEN, or what `hf auth login` stored, is no token: it holds letters that none has."
        case RevisionNotFoundError():
            return f"{repo_id} has no such revision: name a branch that exists, or leave it out for main."
        case HfHubHTTPError():
            said = f" ({in_one_line(error.server_message)})" if error.server_message else ""
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
            return f"{endpoint} takes no uploads by Xet ({in_one_line(error)}): set HF_HUB_DISABLE_XET=1 and {again}"
        case HTTPError() | ConnectionError() | RuntimeError():  # the last are of Xet
            return (
                f"The connection to {endpoint} broke ({in_one_line(error)}): see to the network and to HF_ENDPOINT and "
                f"{again}"
            )
        case JSONDecodeError() | KeyError():
            return f"{endpoint} does not answer as a Hub does ({in_one_line(error)}): see to HF_ENDPOINT."
    return f"{repo_id} was not published: {in_one_line(error)}."


def in_one_line(text: object) -> str:
    """Text in one line, and without the name and password that an address may hold."""
    return re.sub(r"\s+", " ", re.sub(r"(?<=://)[^/\s]*@", "", str(text))).strip(" .")
