"""The Aff-Wild2 release on disk to a `datasets.Dataset`, one row for each annotation file."""

import re
from pathlib import Path

import numpy as np
from datasets import Dataset


SPLITS = {"train": "Train_Set", "validation": "Validation_Set"}
ANNOTATIONS = "VA_Estimation_Challenge"
MEDIA_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm")


def read_annotation(path: str | Path) -> np.ndarray:
    """
    Valence and arousal of every frame, `(frames, 2)` float32; -5 where not annotated.

    Raises:
        ValueError: naming file and line of the first line that is not two numbers.
    """
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    rows = []
    for number, line in enumerate(lines[1:], start=2):  # the first line is `valence,arousal`
        if not line.strip():
            continue
        try:
            valence, arousal = (float(value) for value in line.split(","))
        except ValueError:
            raise ValueError(f"{path}, line {number}: {line!r} is not two numbers `valence,arousal`.") from None
        rows.append((valence, arousal))
    return np.array(rows, np.float32).reshape(-1, 2)


def load_affwild2(root: str | Path, split: str) -> Dataset:
    """
    One row for each annotation file (a video and subject) of a split; no picture or sound is read.

    Expects the release's folders: `batch*/*.mp4`, `cropped_aligned/<video>/00001.jpg`,
    `VA_Estimation_Challenge/{Train_Set,Validation_Set}/<video>.txt`.

    Args:
        root: the folder of the release.
        split: `"train"` or `"validation"`.

    Returns:
        `datasets.Dataset` of `video_id`, `media_path`, `crops_dir`, `labels` `(frames, 2)` (valence and arousal, -5 where
        not annotated).

    Raises:
        ValueError: for an unknown split or an annotation that can not be read.
        FileNotFoundError: if the folders, the annotations or a video's media file are not there.
    """
    root = Path(root)
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not known. Choose one of {', '.join(SPLITS)}.")
    folder = root / ANNOTATIONS / SPLITS[split]
    annotations = sorted(folder.glob("*.txt"))
    if not annotations:
        raise FileNotFoundError(
            f"There are no annotations {folder}/*.txt: root must be the folder that holds {ANNOTATIONS}/, batch1/ and "
            "cropped_aligned/."
        )
    media = {path.stem: path for path in sorted(root.glob("batch*/*")) if path.suffix.lower() in MEDIA_SUFFIXES}
    rows = []
    for annotation in annotations:
        video_id = annotation.stem
        # two subjects of one video are annotated in files of their own and share its media
        media_path = media.get(video_id) or media.get(re.sub(r"_(left|right)$", "", video_id))
        if media_path is None:
            raise FileNotFoundError(f"{annotation} has no media file: there is no {root}/batch*/{video_id}.*")
        rows.append(
            {
                "video_id": video_id,
                "media_path": str(media_path),
                "crops_dir": str(root / "cropped_aligned" / video_id),
                "labels": read_annotation(annotation),
            }
        )
    return Dataset.from_list(rows).with_format("numpy")
