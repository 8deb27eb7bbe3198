"""Training in the paper's three stages: each encoder alone, then the fusion on frozen features."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import HfArgumentParser, get_scheduler
from transformers.utils import logging

from configuration_jca import JCAConfig
from jca.augmentation import make_augmentation
from jca.evaluation import evaluate
from jca.features import extract_features
from jca.metrics import score
from jca.preparation import load_prepared
from jca.windows import ClipDataset, WindowDataset, WindowSampler
from modeling_jca import JCAModel
from processing_jca import JCAFeatureExtractor, JCAProcessor, JCAVideoProcessor


logger = logging.get_logger(__name__)

STAGES = ("video", "audio", "fusion")


# Recipes -------------------------------------------------------------------------------------------------------------


@dataclass
class DataArguments:
    root: str = field(metadata={"help": "Folder that scripts/prepare_affwild2.py made."})
    hop: int = field(default=8, metadata={"help": "Frames between the ends of the clips that are computed."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read clips ahead, for each that trains."})


@dataclass
class StageArguments:
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak of a schedule with warm-up and cosine decay."})
    weight_decay: float = field(default=1e-2, metadata={"help": "AdamW's."})
    batch_size: int = field(default=64, metadata={"help": "Clips (video, audio) or windows (fusion) of one process."})
    num_epochs: int = field(default=10, metadata={"help": "Times over the training split."})
    warmup_ratio: float = field(default=0.1, metadata={"help": "Share of the steps in which the rate rises."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Norm to which gradients are clipped."})
    samples_per_epoch: int | None = field(
        default=None, metadata={"help": "Windows drawn for an epoch of the fusion; without it each clip counts once."}
    )
    balanced: bool = field(default=False, metadata={"help": "Draw windows of each video alike, however long it is."})
    augment_crops: bool = field(default=False, metadata={"help": "Colour jitter, mirror image and crop of the faces."})
    modality_dropout: float = field(default=0.0, metadata={"help": "Share of windows that lose face or voice."})
    feature_noise: float = field(default=0.0, metadata={"help": "Noise on features, in their standard deviations."})


@dataclass
class Recipe:
    """An experiment, as read from YAML by [`load_recipe`]."""

    data: DataArguments
    output_dir: str
    model: dict
    processor: dict
    video: StageArguments
    audio: StageArguments
    fusion: StageArguments


def _parse(kind: type, section: dict, where: str):
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(section) - known):
        raise ValueError(f"{where}: there is no key {', '.join(unknown)}. It takes {', '.join(sorted(known))}.")
    needed = {f.name for f in fields(kind) if f.default is MISSING}
    if lacking := sorted(needed - set(section)):
        raise ValueError(f"{where}: the key {', '.join(lacking)} is needed.")
    return HfArgumentParser(kind).parse_dict(section)[0]


def load_recipe(path: str | Path) -> Recipe:
    """
    Read a recipe.

    Raises:
        ValueError: if it has a key that is not known, or lacks one that is needed, naming file, section and key.
    """
    with open(path, encoding="utf-8") as file:
        content = yaml.safe_load(file)
    known = {f.name for f in fields(Recipe)}
    if unknown := sorted(set(content) - known):
        raise ValueError(f"{path} has the unknown key {', '.join(unknown)}. A recipe has {', '.join(sorted(known))}.")
    for name in ("data", "output_dir", "model"):
        if name not in content:
            raise ValueError(f"{path} lacks the key {name}.")
    if unknown := sorted(set(content["model"]) - {f.name for f in fields(JCAConfig)}):
        raise ValueError(f"{path}, section model: JCAConfig does not know {', '.join(unknown)}.")
    sections = {stage: _parse(StageArguments, content.get(stage) or {}, f"{path}, section {stage}") for stage in STAGES}
    return Recipe(
        data=_parse(DataArguments, content["data"], f"{path}, section data"),
        output_dir=content["output_dir"],
        model=content["model"],
        processor=content.get("processor") or {},
        **sections,
    )


def build_processor(recipe: Recipe) -> JCAProcessor:
    """The processor of a recipe's `processor` section, whose windows are as long as the model's."""
    settings = dict(recipe.processor)
    video_processor = JCAVideoProcessor(**settings.pop("video_processor", {}))
    feature_extractor = JCAFeatureExtractor(**settings.pop("feature_extractor", {}))
    num_clips = JCAConfig(**recipe.model).num_clips
    return JCAProcessor(feature_extractor, video_processor, num_clips=num_clips, **settings)


# The loop ------------------------------------------------------------------------------------------------------------


class Progress:
    """Where a run stands; saved with the state of model, optimizer, schedule and generators."""

    def __init__(self):
        self.epoch, self.best, self.history = 0, None, []

    def state_dict(self) -> dict:
        return vars(self)

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def fit(
    model: JCAModel,
    dataset: Dataset,
    validate: Callable[[JCAModel], dict[str, float]],
    arguments: StageArguments,
    folder: str | Path,
    processor: JCAProcessor,
    seed: int = 0,
    num_workers: int = 0,
) -> dict:
    """
    Train the parameters of `model` that ask for gradients, and keep the weights of the epoch with the best validation CCC.

    Args:
        dataset: gives the model's inputs and `labels`; batches are drawn in an order that the seed fixes, those of a
            [`WindowDataset`] by [`WindowSampler`].
        validate: called after every epoch; returns metrics with `ccc`.
        folder: gets the best model and the processor, `metrics.json` at the end, and in between `state/`, from which a
            run that was stopped goes on with its next epoch.

    Mixed precision and the number of processes are Accelerate's: `accelerate launch --mixed_precision bf16 ...`.

    Returns:
        The content of `metrics.json`: the best epoch's metrics, the history and the settings.
    """
    folder = Path(folder)
    set_seed(seed)
    # without a seedable sampler a run that goes on would draw another order than one never stopped
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=seed))
    sampler = None
    if isinstance(dataset, WindowDataset):
        sampler = WindowSampler(dataset, arguments.samples_per_epoch, arguments.balanced, seed)
    loader = DataLoader(
        dataset,
        arguments.batch_size,
        shuffle=sampler is None,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        drop_last=len(sampler or dataset) > arguments.batch_size,
    )
    augment = make_augmentation(
        processor.video_processor, arguments.augment_crops, arguments.modality_dropout, arguments.feature_noise
    )
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], arguments.learning_rate, weight_decay=arguments.weight_decay
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps = len(loader) * arguments.num_epochs
    # the prepared schedule advances once for each process: it is given the number of all of them
    schedule = accelerator.prepare(
        get_scheduler(
            "cosine",
            optimizer,
            round(steps * arguments.warmup_ratio) * accelerator.num_processes,
            steps * accelerator.num_processes,
        )
    )
    progress, state = Progress(), folder / "state"
    accelerator.register_for_checkpointing(progress)
    if state.exists():
        accelerator.load_state(str(state))
        logger.warning(f"{folder}: going on after epoch {progress.epoch}.")
    started = time.monotonic()
    bar = tqdm(
        total=steps, initial=progress.epoch * len(loader), desc=folder.name, disable=not accelerator.is_main_process
    )
    for epoch in range(progress.epoch, arguments.num_epochs):
        loader.set_epoch(epoch)
        model.train()
        for batch in loader:
            loss = model(**augment(batch)).loss
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"{folder.name}, epoch {epoch}: the loss is {loss.item()}. Lower the learning rate."
                )
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", best=f"{progress.best['ccc']:.3f}" if progress.best else "-")
        plain = accelerator.unwrap_model(model)
        metrics = {"epoch": epoch, **validate(plain)}
        progress.epoch = epoch + 1
        progress.history.append(metrics)
        if progress.best is None or metrics["ccc"] > progress.best["ccc"]:
            progress.best = metrics
            if accelerator.is_main_process:
                plain.save_pretrained(folder)
                processor.save_pretrained(folder)
        accelerator.save_state(str(state))
    bar.close()
    result = {
        "best": progress.best,
        "history": progress.history,
        "arguments": vars(arguments),
        "seed": seed,
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "seconds": round(time.monotonic() - started, 1),
    }
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (folder / "metrics.json").write_text(json.dumps(result, indent=1))
        shutil.rmtree(state)
    accelerator.free_memory()
    return result


# Stages --------------------------------------------------------------------------------------------------------------


def _finished(folder: Path, arguments: StageArguments | None = None) -> bool:
    """Whether a stage has ended in `folder`; raises ValueError if that was with other arguments."""
    if not (folder / "metrics.json").exists():
        return False
    before = json.loads((folder / "metrics.json").read_text())["arguments"]
    if arguments is not None and before != vars(arguments):
        raise ValueError(
            f"{folder} was trained with {before}, and the recipe now says {vars(arguments)}: remove the folder or name "
            "another output_dir."
        )
    return True


@torch.no_grad()
def score_clips(model: JCAModel, dataset: ClipDataset) -> dict[str, float]:
    """Score of a unimodal model over clips, each on its own: what an encoder's stage is selected by."""
    model.eval()
    predictions, labels = [], []
    for batch in DataLoader(dataset, 64):
        labels.append(batch.pop("labels")[:, 0].numpy())
        inputs = {name: values.to(model.device) for name, values in batch.items()}
        predictions.append(model(**inputs).logits[:, 0].float().cpu().numpy())
    return score(predictions, labels, list(model.config.id2label.values()))


def train_encoder(recipe: Recipe, modality: str, seed: int = 0) -> Path:
    """Stages one and two: the `"video"` or `"audio"` encoder with a regressor, on single clips. Returns its folder."""
    folder = Path(recipe.output_dir) / f"seed-{seed}" / f"{modality}_encoder"
    if _finished(folder, getattr(recipe, modality)):
        return folder
    processor = build_processor(recipe)
    train, validation = (
        ClipDataset(load_prepared(recipe.data.root, split), processor, modality, recipe.data.hop)
        for split in ("train", "validation")
    )
    set_seed(seed)
    model = JCAModel(JCAConfig(**{**recipe.model, "modalities": [modality], "fusion": "concat"}))
    fit(
        model,
        train,
        lambda model: score_clips(model, validation),
        getattr(recipe, modality),
        folder,
        processor,
        seed,
        recipe.data.num_workers,
    )
    return folder


def fusion_features(recipe: Recipe, split: str, seed: int = 0):
    """Rows of `extract_features` for a split, by the encoders of stages one and two of this seed.

    Raises:
        FileNotFoundError: if those stages have not ended.
    """
    model = JCAModel(JCAConfig(**recipe.model))
    load_encoders(model, recipe, seed)
    return extract_features(
        load_prepared(recipe.data.root, split),
        model,
        build_processor(recipe),
        recipe.data.hop,
        Path(recipe.output_dir) / "cache",
        recipe.data.num_workers,
    )


def load_encoders(model: JCAModel, recipe: Recipe, seed: int) -> None:
    """Copy the encoders of stages one and two into `model` and freeze them."""
    for modality in model.config.modalities:
        folder = Path(recipe.output_dir) / f"seed-{seed}" / f"{modality}_encoder"
        if not _finished(folder):
            raise FileNotFoundError(
                f"{folder} holds no trained {modality} encoder: train the stage {modality!r} first."
            )
        trained = getattr(JCAModel.from_pretrained(folder), f"{modality}_encoder")
        getattr(model, f"{modality}_encoder").load_state_dict(trained.state_dict())
    model.freeze_encoders()


def train_fusion(recipe: Recipe, seed: int = 0, row: str | None = None) -> Path:
    """
    Stage three: the fusion and the regressors on frozen features. Returns its folder.

    Args:
        row: name of a fusion in place of the recipe's, or `"video"` or `"audio"` for one modality's features alone.
    """
    row = row or JCAConfig(**recipe.model).fusion
    folder = Path(recipe.output_dir) / f"seed-{seed}" / row
    if _finished(folder, recipe.fusion):
        return folder
    processor, hop = build_processor(recipe), recipe.data.hop
    train, validation = (fusion_features(recipe, split, seed) for split in ("train", "validation"))
    change = {"modalities": [row], "fusion": "concat"} if row in ("video", "audio") else {"fusion": row}
    set_seed(seed)
    model = JCAModel(JCAConfig(**{**recipe.model, **change}))
    load_encoders(model, recipe, seed)
    fit(
        model,
        WindowDataset(train, processor, hop, every_phase=True),
        lambda model: evaluate(model, validation, processor, hop),
        recipe.fusion,
        folder,
        processor,
        seed,
    )
    return folder
