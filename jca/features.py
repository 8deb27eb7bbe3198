"""Encode once and keep: the features of every clip of a corpus, a memory-mapped Arrow file for each row."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Array2D, Dataset, Features, List, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm.auto import tqdm

from jca.corpus import CorpusError, split_by_length, write_whole
from jca.corruption import BEFORE_ENCODERS, Corruption, check_corruptions, corrupt_features, corrupt_window
from jca.preparation import fit_labels, source_key, video_windows
from modeling_jca import JCAModel
from processing_jca import JCAProcessor


FORMAT = 2  # counts up when the same media and encoders would give other features
# where code and weights were found does not change what they compute
VOLATILE = {"auto_map", "processor_class", "feature_extractor", "video_processor", "feature_extractor_type"}
VOLATILE |= {"transformers_version", "dtype", "_name_or_path", "architectures"}


def describe_features(
    model: JCAModel, processor: JCAProcessor, hop: int, precision: str, corruptions: Sequence[Corruption] = ()
) -> dict:
    """What features depend on besides their row: encoders, processor, hop, precision and what is corrupted before the
    encoders, as JSON holds it."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if "_encoder." in name:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    parts = {
        "processor": processor,
        "video_processor": processor.video_processor,
        "feature_extractor": processor.feature_extractor,
        **{f"{modality}_encoder": getattr(model, f"{modality}_encoder").config for modality in model.config.modalities},
    }
    settings = {
        part: {name: value for name, value in owner.to_dict().items() if name not in VOLATILE}
        for part, owner in parts.items()
    }
    corrupted = [[str(c), c.seed] for c in corruptions if c.kind in BEFORE_ENCODERS]
    return {
        "format": FORMAT,
        "weights": digest.hexdigest(),
        "hop": hop,
        "precision": precision,
        **settings,
        **({"corruptions": corrupted} if corrupted else {}),
    }


def fingerprint(description: Mapping) -> str:
    """16 hex digits of what JSON holds."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()[:16]


class _WindowStream(IterableDataset):
    """The windows or tracks of rows as the model's inputs, one after the other; workers take whole rows. Of a row that can
    not be read comes its error."""

    def __init__(
        self, rows: list[dict], processor: JCAProcessor, hop: int, corruptions: Sequence[Corruption], tracks: bool
    ):
        self.rows, self.processor, self.hop, self.corruptions = rows, processor, hop, corruptions
        self.tracks = tracks

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in range(first, len(self.rows), step):
            video_id = self.rows[index]["video_id"]
            try:
                for window in video_windows(self.rows[index], self.processor, self.hop, self.tracks):
                    window = corrupt_window(window, self.corruptions, video_id)
                    yield {
                        "row": index,
                        "end_frames": window["end_frames"],
                        "times": [row["time"] for row in window["rows"]],
                        "inputs": self.processor.inputs(window),
                    }
                yield {"row": index}  # that was all
            except (ValueError, OSError) as error:
                yield {"row": index, "error": str(error)}


@torch.no_grad()
def encode_window(
    model: JCAModel, inputs: Mapping[str, torch.Tensor], sizes: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    """
    What the encoders make of the clips of one window or track: for each modality of the model `{modality}_features`
    `(clips, size)` float16 and `{modality}_mask` `(clips,)` bool.

    Args:
        inputs: of `JCAProcessor.inputs`.
        sizes: of a track, see `JCAProcessor.track_sizes`.

    Raises:
        ValueError: if a feature is beyond float16 or no number.
    """
    out = {}
    for modality in model.config.modalities:
        names = ("pixel_values",) if modality == "video" else ("input_features", "input_values")
        clips = next(inputs[name] for name in names if name in inputs)
        clips = clips.to(model.device, model.dtype, non_blocking=True)
        mask = inputs[f"{modality}_mask"]
        if modality == "video" and "frame_mask" in inputs:
            present, chosen = (inputs[name].to(model.device) for name in ("frame_mask", "clip_frames"))
            features = model.get_track_features(clips, present, chosen, sizes=sizes)
        else:
            features = getattr(model, f"get_{modality}_features")(clips, mask.to(model.device))
        out[f"{modality}_features"] = features[0].half().cpu().numpy()
        out[f"{modality}_mask"] = mask[0].numpy()
        if not np.isfinite(out[f"{modality}_features"]).all():
            raise ValueError(f"the {modality} encoder makes features that are no numbers, or too large for float16")
    return out


def extract_features(
    dataset: Dataset,
    model: JCAModel,
    processor: JCAProcessor,
    hop: int,
    folder: str | Path,
    num_workers: int = 0,
    corruptions: Sequence[Corruption] = (),
) -> Dataset:
    """
    What the model's encoders make of every clip of a corpus, computed once and kept.

    Under `accelerate launch` the rows are shared by all processes by their length, in the precision that it says; the
    files are the same. A row's file appears when it is complete, so that a run that was stopped at any point goes on with
    the rows that lack one. Names of files change with all they depend on: encoders, processor, hop and precision, the
    row's media, crops and labels.

    Args:
        dataset: rows of a corpus, see `jca.corpus`.
        model: of which the encoders are used; moved to Accelerate's device.
        hop: frames between the ends of the clips.
        folder: where the files are kept.
        num_workers: processes, for each that encodes, that read and cut clips ahead.
        corruptions: what is done to the rows, see `jca.corruption`. Noise and blur have files of their own; all else is done
            to the features that are kept, each time.

    Returns:
        `datasets.Dataset`, a row for each of `dataset`: `video_id`, `end_frames` `(clips,)` in rising order, for each
        modality of the model `{modality}_features` `(clips, size)` float16 and `{modality}_mask` `(clips,)`, and for the
        frames of the file `times` `(frames,)` in seconds and `labels` `(frames, outputs)`.

    Raises:
        CorpusError: one report of all rows that could not be read, when the others are done.
        ValueError: if rows can not be corrupted so.
    """
    processor.plan(0, hop)  # raises for a wrong hop before anything is opened
    check_corruptions(corruptions, model.config.modalities, processor, hop)
    accelerator = Accelerator()
    description = describe_features(model, processor, hop, accelerator.mixed_precision, corruptions)
    folder = Path(folder) / f"features-{fingerprint(description)}"
    paths, missing = [], []
    for row in dataset:
        try:
            paths.append(folder / f"{row['video_id']}-{source_key(row)}.arrow")
        except (ValueError, OSError) as error:
            missing.append(f"{row['video_id']}: {error}")
    if missing:
        raise CorpusError(folder, missing)
    pending = [index for index, path in enumerate(paths) if not path.exists()]
    accelerator.wait_for_everyone()  # all have seen the same files before the first is added
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "about.json").write_text(json.dumps(description, indent=1, default=str))
    accelerator.wait_for_everyone()
    if pending:
        parts = split_by_length([dataset[index]["num_frames"] for index in pending], accelerator.num_processes)
        mine = [pending[index] for index in parts[accelerator.process_index]]
        model.to(accelerator.device).eval()
        with accelerator.autocast():
            rows, targets = [dataset[index] for index in mine], [paths[index] for index in mine]
            problems = _extract(rows, targets, model, processor, hop, num_workers, corruptions)
        problems = sorted(gather_object(problems))
        if problems:
            raise CorpusError(folder, problems)
    features = concatenate_datasets([Dataset.from_file(str(path)) for path in paths])
    return corrupt_features(features, corruptions, processor, hop, dataset["recording"][:])


def _extract(
    rows: list[dict],
    paths: list[Path],
    model: JCAModel,
    processor: JCAProcessor,
    hop: int,
    num_workers: int,
    corruptions: Sequence[Corruption],
) -> list[str]:
    """Write the file of each row; returns what could not be read."""
    loader = DataLoader(
        _WindowStream(rows, processor, hop, corruptions, model.reads_tracks),
        batch_size=None,
        num_workers=min(num_workers, len(rows)),
        pin_memory=model.device.type == "cuda",
    )
    schema, parts, problems = _schema(model), {}, []
    frames = sum(row["num_frames"] for row in rows)
    failed = set()
    with tqdm(total=frames, desc="features", unit="frame", unit_scale=True) as bar:
        for window in loader:
            index = window["row"]
            if index in failed:
                continue
            try:
                if "error" in window:
                    raise ValueError(window["error"])
                if "inputs" in window:
                    part = {"end_frames": np.asarray(window["end_frames"]), "times": window["times"]}
                    parts.setdefault(index, []).append(
                        {**part, **encode_window(model, window["inputs"], processor.track_sizes(hop))}
                    )
                    bar.update(len(window["times"]))
                else:
                    _write(paths[index], schema, rows[index], parts.pop(index))
            except (ValueError, OSError) as error:
                failed.add(index)
                parts.pop(index, None)
                problems.append(f"{rows[index]['video_id']}: {error}")
    return problems


def _schema(model: JCAModel) -> Features:
    features = Features(
        video_id=Value("string"),
        end_frames=List(Value("int64")),
        times=List(Value("float64")),
        labels=Array2D((None, 2), "float32"),
    )
    for modality in model.config.modalities:
        features[f"{modality}_features"] = Array2D((None, getattr(model, f"{modality}_size")), "float16")
        features[f"{modality}_mask"] = List(Value("bool"))
    return features


def _write(path: Path, schema: Features, row: Mapping, parts: list[dict]) -> None:
    times = np.concatenate([part.pop("times") for part in parts])
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(whole["end_frames"])
    labels, _ = fit_labels(row, len(times))
    content = {name: values[order] for name, values in whole.items()}

    def write(part: Path) -> None:
        with ArrowWriter(path=str(part), features=schema) as writer:
            writer.write({"video_id": row["video_id"], **content, "times": times, "labels": labels})
            writer.finalize()

    write_whole(path, write)
