"""Many videos to files: a timeline for each, and the pictures and films that are asked for."""

import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
from tqdm.auto import tqdm

from jca.corpus import write_whole
from jca.explanations import audio_share, check_modalities
from jca.overlay import write_overlay
from jca.plots import plot_circumplex, plot_timeline
from jca.timeline import FORMATS, Timeline
from pipeline_jca import AudioVisualEmotionPipeline
from sources_jca import IncompleteMediaWarning, Limits, open_media


SETTINGS_FILE = "predict.json"
MEDIA_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"),
    *(".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
SUFFIXES = {
    **{suffix.removeprefix("."): suffix for suffix in FORMATS},
    "plot": ".png",
    "circumplex": ".circumplex.png",
    "overlay": ".overlay.mp4",
    "summary": ".summary.json",
}


class Result(NamedTuple):
    """What became of one video: `status` is done, kept, incomplete or failed; `speed` is in seconds of video a second."""

    source: str
    status: str
    files: list[str]
    rows: int = 0
    seconds: float = 0.0
    speed: float = 0.0
    reason: str = ""


def find_sources(given: Sequence[str]) -> dict[str, str]:
    """
    The videos among files, folders (with all below them) and URLs, each with the name that its files get: its own without
    suffix, below a folder with the path to it; with its suffix where two would have the same.

    Raises:
        FileNotFoundError: if a file or folder is not there, or a folder holds no video.
        ValueError: if two would have the same name.
    """
    sources: dict[str, Path] = {}
    for path in given:
        if "://" in path:
            sources[path] = Path(Path(unquote(urlsplit(path).path)).name or urlsplit(path).netloc)
        elif os.path.isdir(path):
            found = sorted(file for file in Path(path).rglob("*") if _is_video(file, Path(path)))
            if not found:
                raise FileNotFoundError(f"The folder {path!r} holds no video (*{', *'.join(MEDIA_SUFFIXES)}).")
            for file in found:
                sources.setdefault(str(file), file.relative_to(path))
        elif os.path.lexists(path):
            sources[path] = Path(Path(path).name)
        else:
            raise FileNotFoundError(f"There is no file or folder {path!r}.")
    # the same file, once, whatever it was called
    first = {source if "://" in source else os.path.abspath(source): source for source in reversed(sources)}
    sources = {source: name for source, name in sources.items() if source in first.values()}
    stems = Counter(name.with_suffix("") for name in sources.values())
    names = {
        source: name.with_suffix("") if stems[name.with_suffix("")] == 1 else name for source, name in sources.items()
    }
    if double := [name for name, count in Counter(names.values()).items() if count > 1]:
        same = [source for source, name in names.items() if name == double[0]]
        raise ValueError(
            f"{' and '.join(same)} would have the same files {double[0]}.*: give them in runs of their own."
        )
    return {source: str(name) for source, name in names.items()}


def check_names(sources: Mapping[str, str], save: Sequence[str]) -> None:
    """Raise a ValueError if a file of two videos would be the same; arguments as of [`predict_files`]."""
    owners: dict[str, str] = {}
    for source, name in sources.items():
        for suffix in (*(SUFFIXES[kind] for kind in save), ".incomplete.txt"):
            if owners.setdefault(f"{name}{suffix}", source) != source:
                raise ValueError(
                    f"{owners[name + suffix]} and {source} would both have the file {name}{suffix}: give them in runs of "
                    "their own."
                )


def _is_video(file: Path, folder: Path) -> bool:
    """Whether a file below a folder is a video, and none that was made here, or is being made."""
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    own = file.name.endswith(SUFFIXES["overlay"])
    return file.suffix.lower() in MEDIA_SUFFIXES and file.is_file() and not hidden and not own


def predict_files(
    pipe: AudioVisualEmotionPipeline,
    sources: Mapping[str, str],
    folder: str | Path,
    save: Sequence[str] = ("csv",),
    *,
    hop: int = 8,
    smoothing: int | str | None = None,
    faces: str | None = None,
    backend: str | None = None,
    limits: Limits | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    explain: bool = False,
    labels: np.ndarray | None = None,
) -> Iterator[Result]:
    """
    Timelines of videos as files in `folder`. What is there, whole, made with the same settings and newer than its video is
    kept. A video that can not be read does not stop the others; what a video lacks also stands in `NAME.incomplete.txt`.

    Args:
        sources: of [`find_sources`].
        save: any of `SUFFIXES`.
        hop, smoothing, faces, limits: of the pipeline.
        backend: that runs it, see `load_pipeline`.
        overwrite: make all anew.
        quiet: without a bar of the progress.
        explain: draw how much is owed to face and voice into the plot (a second pass).
        labels (of shape `(frames, 2)`): annotated valence and arousal of the one video, drawn into the plot.

    Raises:
        ValueError: if the folder holds files made with other settings, two videos would have the same file, or `explain`
            was asked for of a model of one modality.
    """
    folder = Path(folder)
    # raises for what is wrong before anything is written
    pipe.processor.plan(0, hop)
    if explain:
        check_modalities(pipe.model)
    check_names(sources, save)
    model = _fingerprint(pipe.model.name_or_path)
    settings = {"model": model, "backend": backend, "hop": hop, "smoothing": smoothing, "faces": faces}
    _claim(folder, settings, overwrite)
    for source, name in sources.items():
        files = {kind: folder / f"{name}{SUFFIXES[kind]}" for kind in save}
        said = folder / f"{name}.incomplete.txt"  # what was missing: also of files that are kept
        if not overwrite and _are_newer(files.values(), source, folder / SETTINGS_FILE):
            reason = said.read_text(encoding="utf-8").strip() if said.exists() else ""
            yield Result(source, "kept", [str(file) for file in files.values()], reason=reason)
            continue
        start = time.perf_counter()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", IncompleteMediaWarning)
                options: dict[str, Any] = {"hop": hop, "faces": faces, "limits": limits}
                rows = pipe.stream(source, smoothing=smoothing, **options)
                timeline = Timeline.from_rows(rows if quiet else _with_bar(rows, source), name=Path(name).name)
                folder.mkdir(parents=True, exist_ok=True)
                with TemporaryDirectory(prefix=".predict-", dir=folder) as part:  # all files of a video, or none
                    for kind, file in files.items():
                        target = Path(part) / file.name
                        if kind == "plot":
                            share = audio_share(pipe.model, pipe.processor, source, **options) if explain else None
                            plot_timeline(timeline, target, labels=labels, audio_share=share)
                        elif kind == "circumplex":
                            plot_circumplex(timeline, target)
                        elif kind == "overlay":
                            write_overlay(source, timeline, target, limits)
                        elif kind == "summary":
                            target.write_text(json.dumps(timeline.summary(), indent=1) + "\n", encoding="utf-8")
                        else:
                            timeline.save(target)
                    for file in files.values():
                        file.parent.mkdir(parents=True, exist_ok=True)
                        os.replace(Path(part) / file.name, file)
        except Exception as error:  # whatever it is, the other videos are not to blame
            yield Result(source, "failed", [], reason=f"{error}" or type(error).__name__)
            continue
        incomplete = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, IncompleteMediaWarning))
        said.unlink(missing_ok=True)
        if incomplete:
            said.write_text("\n".join(incomplete) + "\n", encoding="utf-8")
        seconds = float(timeline.time[-1]) + 1 / timeline.fps
        yield Result(
            source,
            "incomplete" if incomplete else "done",
            [str(file) for file in files.values()],
            len(timeline),
            round(seconds, 3),
            round(seconds / (time.perf_counter() - start), 2),
            " ".join(incomplete),
        )


def _fingerprint(model: str) -> list:
    """A model's name, and size and date of its weights where it is a folder."""
    weights = sorted(Path(model).glob("*.safetensors")) if os.path.isdir(model) else []
    return [os.path.realpath(model) if weights else model, [[f.stat().st_size, f.stat().st_mtime_ns] for f in weights]]


def _claim(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Write the settings into a folder, or see that it has the same."""
    file = folder / SETTINGS_FILE
    if file.exists() and not overwrite:
        try:
            found = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} is damaged ({error}): remove it, or --overwrite.") from error
        if other := [name for name in settings if found.get(name) != settings[name]]:
            there, asked = (", ".join(f"{name}={s.get(name)!r}" for name in other) for s in (found, settings))
            raise ValueError(
                f"{folder} holds timelines made with {there}, and {asked} was asked for: choose another folder, or "
                "--overwrite."
            )
    text = json.dumps(settings, indent=1) + "\n"
    if not file.exists() or file.read_text(encoding="utf-8") != text:  # its date says since when they hold
        write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))


def _are_newer(files: Iterable[Path], *others: str | Path) -> bool:
    """Whether all files are there and not older than others on disk."""
    made = [file.stat().st_mtime if file.exists() else -1.0 for file in files]
    return min(made) >= max(os.path.getmtime(other) if os.path.exists(other) else 0.0 for other in others)


def _with_bar(rows: Iterable[dict[str, Any]], source: str) -> Iterator[dict[str, Any]]:
    """The rows, with a bar of the seconds of video that they cover and the speed as a multiple of real time."""
    total, start = None, time.perf_counter()
    if os.path.isfile(source):
        with open_media(source) as container:
            total = container.duration and container.duration / 1e6
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}{postfix}]" if total else None
    with tqdm(total=total, desc=Path(source).name, unit="s", bar_format=form, disable=None) as bar:
        for row in rows:
            if row["time"] - bar.n >= 0.5:
                bar.set_postfix_str(f"{row['time'] / (time.perf_counter() - start):.1f} × real time", refresh=False)
                bar.update(row["time"] - bar.n)
            yield row
        if total:
            bar.update(total - bar.n)
