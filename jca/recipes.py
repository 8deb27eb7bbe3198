"""An experiment as a YAML file: what a recipe says, and the model, processor and data that it describes."""

from dataclasses import MISSING, dataclass, field, fields
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from transformers import HfArgumentParser

from configuration_jca import JCAConfig
from jca.preparation import load_prepared
from jca.protocol import check_disjoint, nested_folds
from modeling_jca import JCAModel
from processing_jca import JCAFeatureExtractor, JCAProcessor, JCAVideoProcessor


STAGES = ("video", "audio", "fusion", "end_to_end")
# Options of some stages alone: a clip of one modality has nothing to drop, kept features no pixels
STAGES_OF = {
    "augment_crops": ("video", "end_to_end"),
    "modality_dropout": ("fusion", "end_to_end"),
    "feature_noise": ("fusion",),
    "encoder_learning_rate": ("end_to_end",),
    "unfreeze_every": ("end_to_end",),
    "whole_batch_gradient": ("fusion",),  # a second pass would count the statistics of batch norm twice
}

_PLAIN = {"num_recursions": 1, "gated": False, "temporal": []}
# Rows of the paper's comparison and of its successors, as what differs from a recipe's model
ROWS = {
    "video": {**_PLAIN, "modalities": ["video"], "fusion": "concat"},
    "audio": {**_PLAIN, "modalities": ["audio"], "fusion": "concat"},
    "concat": {**_PLAIN, "fusion": "concat"},
    "cross_attention": {**_PLAIN, "fusion": "cross_attention"},
    "joint_cross_attention": {**_PLAIN, "fusion": "joint_cross_attention"},
    "tcn": {
        **_PLAIN,
        "fusion": "joint_cross_attention",
        "temporal": ["video", "audio"],
        "temporal_layer": "tcn",
    },
    "recursive": {**_PLAIN, "fusion": "joint_cross_attention", "num_recursions": 3},
    "lstm": {**_PLAIN, "fusion": "joint_cross_attention", "temporal": ["video", "audio", "joint"]},
}


@dataclass
class DataArguments:
    """What is read: the section `data` of a recipe."""

    root: str = field(metadata={"help": "Folder that scripts/prepare_affwild2.py made."})
    hop: int = field(default=8, metadata={"help": "Frames between the ends of the clips that are computed."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read clips ahead, for each that trains."})
    num_folds: int = field(
        default=6, metadata={"help": "Folds of a cross-validation; fold 0 reports the official split."}
    )


@dataclass
class StageArguments:
    """How a stage is trained: its section of a recipe."""

    # Optimisation.
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak of a schedule with warm-up and cosine decay."})
    weight_decay: float = field(default=1e-2, metadata={"help": "AdamW's."})
    batch_size: int = field(default=64, metadata={"help": "Clips (video, audio) or windows of one process."})
    num_epochs: int = field(default=10, metadata={"help": "Times over the training split."})
    warmup_ratio: float = field(default=0.1, metadata={"help": "Share of the steps in which the rate rises."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Norm to which gradients are clipped."})
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Batches of a step. What is optimised is the mean of their losses, each 1 - CCC."}
    )
    whole_batch_gradient: bool = field(
        default=False, metadata={"help": "1 - CCC of all accumulated batches as one, by a second forward pass."}
    )
    ema_decay: float | None = field(
        default=None, metadata={"help": "Decay of a moving average of the weights, which is then evaluated and kept."}
    )
    # Encoders, end to end.
    encoder_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the encoders; as the rest if left out."}
    )
    unfreeze_every: int = field(
        default=0,
        metadata={"help": "Epochs after which one more block of each encoder is trained, the last one first."},
    )
    # Data.
    samples_per_epoch: int | None = field(
        default=None, metadata={"help": "Windows or clips of an epoch; left out, each clip counts once."}
    )
    balanced: bool = field(default=False, metadata={"help": "Draw from each video alike, however long it is."})
    augment_crops: bool = field(default=False, metadata={"help": "Colour jitter, mirror image and crop of the faces."})
    modality_dropout: float = field(default=0.0, metadata={"help": "Share of windows that lose face or voice."})
    feature_noise: float = field(default=0.0, metadata={"help": "Noise on features, in their standard deviations."})
    # Selection and checkpoints.
    patience: int | None = field(default=None, metadata={"help": "Epochs without a better CCC after which to stop."})
    save_steps: int | None = field(default=None, metadata={"help": "Steps between checkpoints; else one an epoch."})

    def __post_init__(self) -> None:
        names = (
            "batch_size",
            "num_epochs",
            "gradient_accumulation_steps",
            "samples_per_epoch",
            "patience",
            "save_steps",
        )
        for name in names:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")


@dataclass
class Recipe:
    """An experiment, as read from YAML by [`load_recipe`]."""

    path: str
    given: list[str]  # sections that it has
    data: DataArguments
    output_dir: str
    model: dict
    processor: dict
    encoders: dict
    video: StageArguments
    audio: StageArguments
    fusion: StageArguments
    end_to_end: StageArguments


def _parse(kind: type, section: dict, where: str) -> Any:
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(section) - known):
        raise ValueError(f"{where}: there is no key {', '.join(unknown)}. It takes {', '.join(sorted(known))}.")
    needed = {f.name for f in fields(kind) if f.default is MISSING}
    if lacking := sorted(needed - set(section)):
        raise ValueError(f"{where}: the key {', '.join(lacking)} is needed.")
    for f in fields(kind):
        value, types = section.get(f.name), f.type if isinstance(f.type, type) else None
        if f.name in section and types in (int, float) and (isinstance(value, (str, bool)) or value is None):
            raise ValueError(f"{where}: {f.name} is {value!r} and must be a number, such as 0.001 or 1.0e-3.")
    try:
        return HfArgumentParser(kind).parse_dict(section)[0]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_nested(content: dict, path: str | Path) -> None:
    """Raises ValueError for keys that a processor or an encoder's configuration would pass over."""
    processor = dict(content.get("processor") or {})
    known = {"processor": {"frame_rate", "clip_length", "clip_stride"}}
    given = {"processor": processor}
    if content.get("encoders"):
        given["processor"] = processor
    else:
        for name, kind in (("video_processor", JCAVideoProcessor), ("feature_extractor", JCAFeatureExtractor)):
            given[f"processor, {name}"] = processor.pop(name, {})
            known[f"processor, {name}"] = {"size", "faces", "image_mean", "image_std"}
            if kind is JCAFeatureExtractor:
                known[f"processor, {name}"] = set(signature(kind.__init__).parameters) - {"self", "kwargs"}
    config = JCAConfig(**content["model"])
    for name in ("video_config", "audio_config"):
        given[f"model, {name}"] = content["model"].get(name) or {}
        known[f"model, {name}"] = {f.name for f in fields(type(getattr(config, name)))} | {"model_type"}
    for section, values in given.items():
        if unknown := sorted(set(values) - known[section]):
            raise ValueError(
                f"{path}, section {section}: there is no key {', '.join(unknown)}. It takes "
                f"{', '.join(sorted(known[section]))}."
            )


def load_recipe(path: str | Path) -> Recipe:
    """
    Read a recipe. Its sections: `data`, `output_dir`, `model` (arguments of [`JCAConfig`]), `processor`, `encoders` (folder
    or Hub repository of trained encoders by modality), and one for each stage.

    Raises:
        ValueError: if it has a key that is not known, or lacks one that is needed, naming file, section and key.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no sections: see recipes/demo.yaml.")
    known = {f.name for f in fields(Recipe)} - {"path", "given"}
    if unknown := sorted(set(content) - known):
        raise ValueError(f"{path} has the unknown key {', '.join(unknown)}. A recipe has {', '.join(sorted(known))}.")
    for name in ("data", "output_dir", "model"):
        if name not in content:
            raise ValueError(f"{path} lacks the key {name}.")
    if unknown := sorted(set(content["model"]) - {f.name for f in fields(JCAConfig)}):
        raise ValueError(f"{path}, section model: JCAConfig does not know {', '.join(unknown)}.")
    _check_nested(content, path)
    if unknown := sorted(set(content.get("encoders") or {}) - {"video", "audio"}):
        raise ValueError(f"{path}, section encoders: there is no key {', '.join(unknown)}. It takes audio, video.")
    for stage in STAGES:
        for name, stages in STAGES_OF.items():
            if name in (content.get(stage) or {}) and stage not in stages:
                raise ValueError(f"{path}, section {stage}: {name} is an option of {' and '.join(stages)} alone.")
    sections = {stage: _parse(StageArguments, content.get(stage) or {}, f"{path}, section {stage}") for stage in STAGES}
    return Recipe(
        path=str(path),
        given=list(content),
        data=_parse(DataArguments, content["data"], f"{path}, section data"),
        output_dir=content["output_dir"],
        model=content["model"],
        processor=content.get("processor") or {},
        encoders=content.get("encoders") or {},
        **sections,
    )


def build_processor(recipe: Recipe) -> JCAProcessor:
    """The processor of a recipe: its `processor` section, or what its `encoders` expect; windows are the model's."""
    settings = {**recipe.processor, "num_clips": JCAConfig(**recipe.model).num_clips}
    if recipe.encoders:
        return JCAProcessor.from_encoders(**recipe.encoders, **settings)
    video_processor = JCAVideoProcessor(**settings.pop("video_processor", {}))
    feature_extractor = JCAFeatureExtractor(**settings.pop("feature_extractor", {}))
    return JCAProcessor(feature_extractor, video_processor, **settings)


def build_model(recipe: Recipe, **changes: Any) -> JCAModel:
    """The model of a recipe, with the trained weights of its `encoders`; `changes` go before its `model` section."""
    arguments = {**recipe.model, **changes}
    modalities = arguments.get("modalities", ("video", "audio"))
    encoders = {modality: source for modality, source in recipe.encoders.items() if modality in modalities}
    return JCAModel.from_encoders(**encoders, **arguments) if encoders else JCAModel(JCAConfig(**arguments))


def load_splits(recipe: Recipe, fold: int | None = None) -> tuple[Dataset, Dataset, Dataset]:
    """
    The rows to train on, to select by and to report.

    Args:
        fold: of a cross-validation, see `jca.protocol.nested_folds`; left out, the official splits, of which validation is
            both selected by and reported.

    Raises:
        CorpusError: if the data is not prepared.
        ValueError: if splits share a subject, or there is no such fold.
    """
    train, validation = (load_prepared(recipe.data.root, split) for split in ("train", "validation"))
    if fold is None:
        check_disjoint(train, validation, f"{recipe.path}, section data, key root, {recipe.data.root}")
        return train, validation, validation
    folds = nested_folds(train, validation, recipe.data.num_folds)
    if not 0 <= fold < len(folds):
        raise ValueError(
            f"fold={fold}: {recipe.path} has num_folds={recipe.data.num_folds}, give 0 to {len(folds) - 1}."
        )
    return folds[fold]
