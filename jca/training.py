"""Training through Accelerate: one loop for the paper's three stages, each encoder alone and then the fusion on frozen
features, and for a fourth that trains all of it end to end."""

import datetime
import itertools
import json
import math
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedType, ProjectConfiguration, set_seed
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from configuration_jca import JCAConfig
from jca.augmentation import make_augmentation
from jca.checkpoints import (
    CheckpointError,
    checkpoint_settings,
    difference,
    latest_checkpoint,
    save_checkpoint,
    saving,
)
from jca.corpus import SPLITS, write_whole
from jca.evaluation import evaluate, outputs, score_windows
from jca.features import extract_features
from jca.metrics import score
from jca.preparation import corpus_record, file_hash
from jca.recipes import ROWS, Recipe, StageArguments, build_model, build_processor, load_splits
from jca.windows import ClipDataset, EpochSampler, MediaWindowDataset, PlacedWindows, WindowBatch, WindowDataset
from modeling_jca import JCAModel, ccc_loss
from processing_jca import JCAProcessor


LOG_STEPS = 10  # between two looks at the loss, each of which waits for the device


# The loop ------------------------------------------------------------------------------------------------------------


class Progress:
    """Where a run stands; saved with the state of model, optimizer and schedule."""

    def __init__(self) -> None:
        self.step, self.best, self.history, self.seconds = 0, None, [], 0.0

    def state_dict(self) -> dict:
        """For a checkpoint of Accelerate's."""
        return vars(self)

    def load_state_dict(self, state: dict) -> None:
        """From a checkpoint of Accelerate's."""
        vars(self).update(state)


def fit(
    model: JCAModel,
    dataset: Dataset,
    validate: Callable[[JCAModel, Path | None], dict[str, float]],
    arguments: StageArguments,
    folder: str | Path,
    processor: JCAProcessor,
    seed: int = 0,
    num_workers: int = 0,
    resume: bool = True,
    log_with: str | None = None,
    report: Callable[[JCAModel], dict[str, float]] | None = None,
    settings: dict[str, Any] | None = None,
    about: dict[str, Any] | None = None,
) -> dict:
    """
    Train the parameters of `model` that ask for gradients, and keep the weights of the epoch with the best validation CCC.

    Every random choice of a step is a function of seed, step and process. A run that was stopped at any point therefore ends
    with the same weights as one that never was: `checkpoints/` has all it needs to go on.

    Args:
        dataset: gives the model's inputs and `labels`; `rows` `(items,)` are the videos from which items are drawn by
            [`EpochSampler`], and without it all are.
        validate: called after every epoch with the model and a folder for pictures (None on all processes but the first);
            returns metrics with `ccc`.
        folder: gets the best model and the processor, and `metrics.json` at the end.
        resume: go on from the newest complete checkpoint; otherwise what is there is removed.
        log_with: a tracker of Accelerate's, such as `"tensorboard"`, `"trackio"` or `"wandb"`.
        report: called at the end with the best model; what it returns becomes `reported` in `metrics.json`.
        settings: what else the weights depend on: a run does not go on with other ones.
        about: what else `metrics.json` is to say.

    Mixed precision, compilation and the number of processes are Accelerate's: `accelerate launch --mixed_precision bf16
    --dynamo_backend inductor ...`.

    Returns:
        The content of `metrics.json`: the best epoch's metrics, the history, settings, versions, hardware and time.

    Raises:
        CheckpointError: if the folder can not be written.
        FloatingPointError: if the loss is no number.
        ValueError: if checkpoints of other arguments, settings, processes or precision are there, if the tracker is not
            known or not installed, or if the backend can not do what the arguments say.
    """
    folder = Path(folder)
    checkpoints = folder / "checkpoints"
    if log_with:
        _check_tracker(log_with)
    accelerator = Accelerator(
        log_with=log_with, project_config=ProjectConfiguration(str(folder), logging_dir=str(folder / "logs"))
    )
    _check_backend(accelerator, arguments)
    if accelerator.is_main_process:
        _make_folder(folder, checkpoints, resume)
    accelerator.wait_for_everyone()
    origin = provenance(accelerator)
    set_seed(seed)
    rows = getattr(dataset, "rows", np.zeros(len(dataset), int))
    sampler = EpochSampler(rows, _epoch_size(dataset, arguments), arguments.balanced, seed)
    loader = DataLoader(
        dataset,
        arguments.batch_size,
        sampler=sampler,
        collate_fn=WindowBatch.collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=accelerator.device.type == "cuda",
        drop_last=len(sampler) > arguments.batch_size * accelerator.num_processes,
    )
    augment = make_augmentation(
        processor.video_processor,
        arguments.augment_crops,
        arguments.modality_dropout if len(model.config.modalities) > 1 else 0.0,  # the only one is not dropped
        arguments.feature_noise,
        getattr(model.config.video_config, "tracks", False),
    )
    average = None
    if arguments.ema_decay is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(arguments.ema_decay), use_buffers=True)
        average.to(accelerator.device)
        accelerator.register_for_checkpointing(average)
    groups = parameter_groups(model, arguments)
    optimizer = torch.optim.AdamW(groups, arguments.learning_rate, weight_decay=arguments.weight_decay)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    per_epoch = math.ceil(len(loader) / arguments.gradient_accumulation_steps)
    steps = per_epoch * arguments.num_epochs
    schedule = _schedule(optimizer, groups, steps, per_epoch, arguments)
    progress = Progress()
    accelerator.register_for_checkpointing(progress, schedule)
    here = {"processes": accelerator.num_processes, "mixed_precision": accelerator.mixed_precision}
    settings = {**vars(arguments), **(settings or {}), **here}
    if resume and (path := latest_checkpoint(checkpoints)):
        if change := difference(checkpoint_settings(path), settings):
            raise ValueError(
                f"{path} {change}: give the former, start anew with --resume none, or name another output_dir."
            )
        accelerator.load_state(str(path))
        accelerator.print(f"{folder}: going on after step {progress.step} of {steps}.")
    if log_with:
        accelerator.init_trackers("jca", config={k: v for k, v in vars(arguments).items() if v is not None})

    started = time.monotonic() - progress.seconds
    bar = tqdm(total=steps, initial=progress.step, desc=folder.name, disable=not accelerator.is_main_process)
    while progress.step < steps and not _is_patient_no_more(progress, arguments):
        epoch, done = divmod(progress.step, per_epoch)
        rest = skip_first_batches(loader, done * arguments.gradient_accumulation_steps) if done else loader
        sampler.set_epoch(epoch)
        rest.set_epoch(epoch)  # a loader that skips would count its epochs from 0, and tell the sampler
        batches = iter(rest)
        model.train()
        losses = []
        for _ in range(done, per_epoch):
            parts = list(itertools.islice(batches, arguments.gradient_accumulation_steps))
            # after them: a loader that begins draws a number, and a run that goes on begins elsewhere
            torch.manual_seed(_step_seed(seed, progress.step, accelerator.process_index))
            parts = [augment(batch) for batch in parts]
            losses.append(backward(accelerator, model, parts, arguments.whole_batch_gradient))
            accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if average is not None:
                average.update_parameters(accelerator.unwrap_model(model, keep_torch_compile=False))
            progress.step += 1
            bar.update()
            ended = progress.step % per_epoch == 0
            save = not ended and arguments.save_steps and progress.step % arguments.save_steps == 0
            if progress.step % LOG_STEPS == 0 or ended or save:  # no checkpoint keeps a loss that is no number
                loss = torch.stack(losses).mean().item()
                losses = []
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"{folder.name}, step {progress.step}: the loss is {loss}. Lower the learning rate "
                        f"({arguments.learning_rate}), or see whether the features are finite."
                    )
                rate = schedule.get_last_lr()[-1]
                bar.set_postfix(loss=f"{loss:.3f}", ccc=f"{1 - loss:.3f}", best=_ccc(progress.best))
                accelerator.log({"loss": loss, "ccc": 1 - loss, "learning_rate": rate}, progress.step)
            if save:
                progress.seconds = time.monotonic() - started
                save_checkpoint(accelerator, checkpoints, progress.step, settings)
        next(batches, None)  # the loader learns that it has ended
        _end_of_epoch(accelerator, model, average, validate, progress, epoch, folder, processor)
        progress.seconds = time.monotonic() - started
        save_checkpoint(accelerator, checkpoints, progress.step, settings)
    bar.close()
    accelerator.wait_for_everyone()
    reported = report(JCAModel.from_pretrained(folder).to(accelerator.device)) if report else None
    result = {
        **({"reported": reported} if report else {}),
        "best": progress.best,
        "history": progress.history,
        "settings": settings,
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        **origin,
        **(about or {}),
    }
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with saving(folder / "metrics.json", checkpoints):
            write_whole(folder / "metrics.json", lambda part: part.write_text(json.dumps(result, indent=1)))
        shutil.rmtree(checkpoints, ignore_errors=True)
    for tracker in accelerator.trackers if log_with else ():  # `end_training` would part the processes too
        tracker.finish()
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return result


def backward(
    accelerator: Accelerator, model: torch.nn.Module, batches: list[dict[str, torch.Tensor]], whole: bool = False
) -> torch.Tensor:
    """
    The gradients of one step, and its loss.

    Args:
        batches: of this process. Each one's loss is 1 - CCC of that batch on all processes.
        whole: what is optimised is 1 - CCC of all batches as one, and not the mean of their losses. CCC is no mean over
            samples, so all outputs are needed before the first gradient: they are computed without gradients first, the
            gradient of the loss is taken at them, and a second pass carries it through the model, with the same dropout.

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    if not whole:
        total = 0.0
        for index, batch in enumerate(batches):
            with _sync_last(accelerator, model, index, batches):
                loss = ccc_loss(_logits(model, batch), batch["labels"]) / len(batches)
                accelerator.backward(loss)
            total = total + loss.detach()
        return total
    labels = [batch["labels"] for batch in batches]
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():  # the second pass draws the same numbers
        logits = [_logits(model, batch) for batch in batches]
    logits = [x.detach().float().requires_grad_() for x in logits]
    loss = ccc_loss(torch.cat(logits), torch.cat(labels))
    gradients = torch.autograd.grad(loss, logits)
    for index, (batch, gradient) in enumerate(zip(batches, gradients, strict=True)):
        with _sync_last(accelerator, model, index, batches):
            accelerator.backward((_logits(model, batch).float() * gradient).sum())
    return loss.detach()


def _logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """FSDP would round labels and loss to its precision, so that they stay outside of the model."""
    return model(**{name: x for name, x in batch.items() if name != "labels"}).logits


def _sync_last(accelerator: Accelerator, model: torch.nn.Module, index: int, batches: list) -> AbstractContextManager:
    """Gradients go round the processes once a step."""
    return accelerator.no_sync(model) if index < len(batches) - 1 else nullcontext()


def parameter_groups(model: JCAModel, arguments: StageArguments) -> list[dict]:
    """
    The parameters that ask for gradients, for the optimizer: the encoders', which may have a rate of their own, in blocks
    from the last to the first, with the epoch `release` in which each begins to be trained; and all others.
    """
    encoders, rest = {}, []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        modality, _, inner = name.partition("_encoder.")
        if (inner and arguments.encoder_learning_rate is not None) or (inner and arguments.unfreeze_every):
            parts = inner.split(".")  # `stages.2.…` and `encoder.layer.7.…` are blocks of their own
            block = ".".join(parts[: next((i + 1 for i, part in enumerate(parts) if part.isdigit()), 1)])
            encoders.setdefault(modality, {}).setdefault(block, []).append(parameter)
        else:
            rest.append(parameter)
    rate = arguments.learning_rate if arguments.encoder_learning_rate is None else arguments.encoder_learning_rate
    groups = [
        {"params": parameters, "lr": rate, "release": (depth + 1) * arguments.unfreeze_every}
        for blocks in encoders.values()
        for depth, parameters in enumerate(reversed(blocks.values()))
    ]
    return [*groups, {"params": rest, "lr": arguments.learning_rate, "release": 0}]


def _schedule(
    optimizer: torch.optim.Optimizer, groups: list[dict], steps: int, per_epoch: int, arguments: StageArguments
) -> torch.optim.lr_scheduler.LRScheduler:
    """Warm-up and cosine decay for each group, from the epoch in which it is released on. A group that is not yet has a rate
    of 0 rather than no gradients, which processes that train together would not agree on. Accelerate does not prepare it: it
    would advance once for each process, but under DeepSpeed once."""
    warmup = round(steps * arguments.warmup_ratio)

    def rate(step: int, start: int) -> float:
        if step < start:
            return 0.0
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    starts = [group["release"] * per_epoch for group in groups]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, [partial(rate, start=start) for start in starts])


def _epoch_size(dataset: Dataset, arguments: StageArguments) -> int:
    if arguments.samples_per_epoch is not None:
        return arguments.samples_per_epoch
    if isinstance(dataset, PlacedWindows):  # the paper's epoch
        return max(1, dataset.num_clips // len(dataset.offsets))
    return len(dataset)


def _step_seed(seed: int, step: int, process: int) -> int:
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0] >> 1)


def _is_patient_no_more(progress: Progress, arguments: StageArguments) -> bool:
    if arguments.patience is None or progress.best is None:
        return False
    return progress.history[-1]["epoch"] - progress.best["epoch"] >= arguments.patience


def _ccc(metrics: dict | None) -> str:
    return "-" if metrics is None else f"{metrics['ccc']:.3f}"


def _check_tracker(name: str) -> None:
    if name not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"log_with={name!r} is no tracker. Give one of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}.")
    if name not in [str(tracker) for tracker in get_available_trackers()]:  # Accelerate would go on without
        raise ValueError(f"log_with={name!r}, and {name} is not installed: pip install {name.replace('_', '-')}.")


def _check_backend(accelerator: Accelerator, arguments: StageArguments) -> None:
    backend = accelerator.distributed_type
    if backend in (DistributedType.FSDP, DistributedType.DEEPSPEED) and arguments.ema_decay is not None:
        raise ValueError(
            f"ema_decay={arguments.ema_decay}: an average needs whole weights on each process, and {backend.value} shares "
            "them out. Leave ema_decay out, or train with recipes/accelerate/ddp_2gpu.yaml."
        )
    if backend != DistributedType.DEEPSPEED:
        return
    if arguments.gradient_accumulation_steps > 1 or arguments.whole_batch_gradient:
        raise ValueError(
            f"gradient_accumulation_steps={arguments.gradient_accumulation_steps}, whole_batch_gradient="
            f"{arguments.whole_batch_gradient}: DeepSpeed counts the batches of a step itself. Leave both out, or train "
            "with recipes/accelerate/fsdp2.yaml."
        )
    clipping = accelerator.state.deepspeed_plugin.deepspeed_config.get("gradient_clipping", 0.0)
    if clipping != arguments.max_grad_norm:
        raise ValueError(
            f"max_grad_norm={arguments.max_grad_norm}: DeepSpeed clips by its own gradient_clipping, which is {clipping}. "
            "Write the same in both."
        )


def _make_folder(folder: Path, checkpoints: Path, resume: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            shutil.rmtree(checkpoints, ignore_errors=True)
        (folder / "metrics.json").unlink(missing_ok=True)  # of weights that are about to change
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise CheckpointError(
            f"{folder} can not be written ({error}): name another output_dir, or see to its rights."
        ) from error


def _end_of_epoch(
    accelerator: Accelerator,
    model: torch.nn.Module,
    average: torch.nn.Module | None,
    validate: Callable[[JCAModel, Path | None], dict[str, Any]],
    progress: Progress,
    epoch: int,
    folder: Path,
    processor: JCAProcessor,
) -> None:
    """Validate, remember, and keep the weights if they are the best."""
    plain = accelerator.unwrap_model(model, keep_torch_compile=False) if average is None else average.module
    pictures = folder / "pictures" / f"epoch-{epoch:03d}.png" if accelerator.is_main_process else None
    metrics = {"epoch": epoch, **validate(plain, pictures)}
    progress.history.append(metrics)
    accelerator.log({f"validation/{name}": x for name, x in metrics.items() if isinstance(x, float)}, progress.step)
    if progress.best is None or metrics["ccc"] > progress.best["ccc"]:
        progress.best = metrics
        # sharded weights are gathered by all processes; a compiled model would give them other names
        whole = getattr(model, "_orig_mod", model)
        state = accelerator.get_state_dict(whole) if average is None else average.module.state_dict()
        if accelerator.is_main_process:
            with torch.device("meta"):  # FSDP made the class of the trained one its own, whose files would be saved
                plain = JCAModel(plain.config)
            with saving(folder, folder / "checkpoints"):
                part = folder / "best.part"  # a run that stops meanwhile leaves the former whole
                plain.save_pretrained(part, state_dict=state)
                processor.save_pretrained(part)
                for path in part.iterdir():
                    path.replace(folder / path.name)
                part.rmdir()


def provenance(accelerator: Accelerator) -> dict[str, Any]:
    """When, where and with what: for the metrics file."""
    root = Path(__file__).parents[1]
    run = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # installed, and no checkout
        commit = None
    device = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else platform.processor() or "CPU"
    packages = ("jca", "torch", "transformers", "accelerate", "datasets")
    return {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "hardware": {"machine": platform.machine(), "device": device, "threads": torch.get_num_threads()},
    }


# Stages --------------------------------------------------------------------------------------------------------------


def stage_folder(recipe: Recipe, name: str, seed: int, fold: int | None) -> Path:
    """Where a stage or row is kept: `<output_dir>/[fold-<fold>/]seed-<seed>/<name>`."""
    root = Path(recipe.output_dir) / f"fold-{fold}" if fold is not None else Path(recipe.output_dir)
    return root / f"seed-{seed}" / name


def stage_settings(recipe: Recipe, stage: str, changes: dict | None = None) -> dict:
    """All of a recipe that the weights of a stage depend on."""
    return {
        **vars(getattr(recipe, stage)),
        **{name: getattr(recipe.data, name) for name in ("root", "hop", "num_folds")},
        "model": {**recipe.model, **(ROWS[stage] if stage in ("video", "audio") else changes or {})},
        "processor": recipe.processor,
        "encoders": recipe.encoders,
    }


def _finished(folder: Path, settings: dict) -> bool:
    """Whether a stage has ended in `folder`; raises ValueError if that was with other settings."""
    if not (folder / "metrics.json").exists():
        return False
    before = json.loads((folder / "metrics.json").read_text())["settings"]
    if change := difference(before, settings):
        raise ValueError(f"{folder} {change}: remove the folder or name another output_dir.")
    return True


def _about(recipe: Recipe, stage: str, fold: int | None) -> dict:
    selected = "validation" if fold is None else "held-out part of the next fold"
    reported = "validation" if fold is None else f"held-out part of fold {fold}"
    return {
        "recipe": recipe.path,
        "stage": stage,
        "data": recipe.data.root,
        "corpus": {split: corpus_record(recipe.data.root, split) for split in SPLITS[:2]},
        "hop": recipe.data.hop,
        "fold": fold,
        "selected_by": selected,
        "reported_on": reported,
    }


def score_clips(model: JCAModel, dataset: ClipDataset, num_workers: int = 0) -> dict[str, float]:
    """Score of a unimodal model over clips, each on its own: what an encoder's stage is selected by."""
    logits = outputs(model, dataset, 64, num_workers)
    return score(list(logits), list(dataset.labels[:, None]), list(model.config.id2label.values()))


def train_encoder(recipe: Recipe, modality: str, seed: int = 0, fold: int | None = None, **options: Any) -> Path:
    """
    Stages one and two: the `"video"` or `"audio"` encoder with a regressor, on single clips, or on windows of them if it
    reads them as a track. Returns its folder.

    Args:
        fold: of a cross-validation; left out, the official split.
        options: `resume` and `log_with` of [`fit`].

    Raises:
        ValueError: if the stage has ended with other settings, and as [`fit`].
    """
    folder, settings = stage_folder(recipe, f"{modality}_encoder", seed, fold), stage_settings(recipe, modality)
    if _finished(folder, settings):
        return folder
    processor, workers = build_processor(recipe), recipe.data.num_workers
    train, selected, _ = load_splits(recipe, fold)
    set_seed(seed)
    model = build_model(recipe, **ROWS[modality])
    if getattr(getattr(model.config, f"{modality}_config"), "tracks", False):
        train = MediaWindowDataset(train, processor, recipe.data.hop, True, [modality])
        selected = MediaWindowDataset(selected, processor, recipe.data.hop, modalities=[modality])
        names = list(model.config.id2label.values())

        def validate(model: JCAModel, _: Path | None) -> dict[str, float]:
            return score_windows(model, selected, selected.frame_labels, processor.frame_rate, names, None, workers)
    else:
        train, selected = (ClipDataset(rows, processor, modality, recipe.data.hop) for rows in (train, selected))

        def validate(model: JCAModel, _: Path | None) -> dict[str, float]:
            return score_clips(model, selected, workers)

    fit(
        model,
        train,
        validate,
        getattr(recipe, modality),
        folder,
        processor,
        seed,
        workers,
        settings=settings,
        about=_about(recipe, modality, fold),
        **options,
    )
    return folder


def load_encoders(model: JCAModel, recipe: Recipe, seed: int, fold: int | None = None) -> None:
    """
    Copy the encoders of stages one and two into `model` and freeze them. Those that a recipe names under `encoders` need no
    such stage.

    Raises:
        FileNotFoundError: if those stages have not ended.
        ValueError: if they ended with another recipe.
    """
    for modality in model.config.modalities:
        folder = stage_folder(recipe, f"{modality}_encoder", seed, fold)
        if _finished(folder, stage_settings(recipe, modality)):
            trained = getattr(JCAModel.from_pretrained(folder), f"{modality}_encoder")
            getattr(model, f"{modality}_encoder").load_state_dict(trained.state_dict())
        elif modality not in recipe.encoders:
            raise FileNotFoundError(
                f"{folder} holds no trained {modality} encoder, and {recipe.path} names none under encoders: train the "
                f"stage {modality!r} first."
            )
    model.freeze_encoders()


def train_fusion(
    recipe: Recipe, seed: int = 0, fold: int | None = None, row: str | None = None, **options: Any
) -> Path:
    """
    Stage three: the fusion and the regressors on frozen features. Returns its folder.

    Args:
        fold, options: see [`train_encoder`].
        row: name in `jca.recipes.ROWS`, whose changes of the model are made; left out, the recipe's model.

    Raises:
        ValueError: see [`train_encoder`].
    """
    changes = ROWS[row] if row is not None else {}
    if JCAConfig(**{**recipe.model, **changes}).to_dict() == JCAConfig(**recipe.model).to_dict():
        changes, row = {}, None  # the recipe's own model
    folder, processor, data = stage_folder(recipe, row or "fusion", seed, fold), build_processor(recipe), recipe.data
    encoders = build_model(recipe)
    load_encoders(encoders, recipe, seed, fold)
    made_by = {
        modality: file_hash(path)
        for modality in encoders.config.modalities
        if (path := stage_folder(recipe, f"{modality}_encoder", seed, fold) / "model.safetensors").exists()
    }
    settings = {**stage_settings(recipe, "fusion", changes), "encoder_weights": made_by}
    if _finished(folder, settings):
        return folder
    train, selected, reported = (
        extract_features(rows, encoders, processor, data.hop, Path(recipe.output_dir) / "cache", data.num_workers)
        for rows in load_splits(recipe, fold)
    )
    set_seed(seed)
    model = build_model(recipe, **changes)
    load_encoders(model, recipe, seed, fold)
    windows, names = WindowDataset(selected, processor, data.hop), list(model.config.id2label.values())
    labels = list(selected.with_format("numpy")["labels"])
    fit(
        model,
        WindowDataset(train, processor, data.hop, every_phase=True),
        lambda model, pictures: score_windows(model, windows, labels, processor.frame_rate, names, pictures),
        recipe.fusion,
        folder,
        processor,
        seed,
        data.num_workers,
        report=lambda model: evaluate(model, reported, processor, data.hop),
        settings=settings,
        about=_about(recipe, "fusion", fold),
        **options,
    )
    return folder


def train_end_to_end(recipe: Recipe, seed: int = 0, fold: int | None = None, **options: Any) -> Path:
    """
    Stage four: all of the model of stage three, on pixels and sound. Returns its folder; see [`train_encoder`].

    Raises:
        FileNotFoundError: if stage three has not ended.
        ValueError: see [`train_encoder`].
    """
    folder, start = (stage_folder(recipe, name, seed, fold) for name in ("end_to_end", "fusion"))
    if not _finished(start, {}):
        raise FileNotFoundError(f"{start} holds no trained fusion: train the stage 'fusion' first.")
    settings = {**stage_settings(recipe, "end_to_end"), "start": file_hash(start / "model.safetensors")}
    if _finished(folder, settings):
        return folder
    processor, data = build_processor(recipe), recipe.data
    train, selected, reported = load_splits(recipe, fold)
    windows = MediaWindowDataset(train, processor, data.hop, every_phase=True)
    selected = MediaWindowDataset(selected, processor, data.hop)
    names = list(JCAModel.from_pretrained(start).config.id2label.values())

    def validate(model: JCAModel, pictures: Path | None) -> dict[str, float]:
        return score_windows(
            model, selected, selected.frame_labels, processor.frame_rate, names, pictures, data.num_workers
        )

    def report(
        model: JCAModel,
    ) -> dict[str, float]:  # as the pipeline computes, which shares what windows have in common
        cache = Path(recipe.output_dir) / "cache"
        features = extract_features(reported, model, processor, data.hop, cache, data.num_workers)
        return evaluate(model, features, processor, data.hop)

    fit(
        JCAModel.from_pretrained(start),
        windows,
        validate,
        recipe.end_to_end,
        folder,
        processor,
        seed,
        data.num_workers,
        report=report,
        settings=settings,
        about=_about(recipe, "end_to_end", fold),
        **options,
    )
    return folder
