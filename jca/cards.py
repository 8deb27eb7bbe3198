"""Model cards, written from the files that training leaves, and the card of the synthetic corpus. No figure on a card comes
from a hand."""

import datetime
import hashlib
import json
import math
import os.path
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    DatasetCard,
    DatasetCardData,
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import UndefinedError
from transformers import AutoConfig

from configuration_jca import JCAConfig
from jca.recipes import build_processor, load_recipe
from jca.synthetic import SETTINGS_FILE, read_settings
from processing_jca import JCAProcessor


TEMPLATES = Path(__file__).parent / "templates"
METRICS = {"ccc": ("CCC", "ccc"), "mse": ("MSE", "mse"), "pcc": ("PCC", "pearsonr")}  # for people, for the Hub
# How each kind of corpus is called and what the Hub is told of it. Neither lies there under this name.
CORPORA = {
    "synthetic": {"name": "synthetic corpus", "datasets": ["jca-synthetic"], "license": "apache-2.0"},
    "affwild2": {
        "name": "Aff-Wild2",
        "datasets": ["aff-wild2"],
        "license": "other",
        "license_name": "aff-wild2-research-only",
        "license_link": "https://ibug.doc.ic.ac.uk/resources/aff-wild2/",
    },
    "csv": {"name": "a corpus of one's own", "datasets": [], "license": "unknown"},
    None: {"name": "a corpus that is not named", "datasets": [], "license": "unknown"},
}
UNEDITED = re.compile(r"\n<!-- As jca\.cards wrote it, while the SHA-256 of all above is ([0-9a-f]{64}) -->\n\Z")
FACES = {
    "detect": "found, followed and aligned",
    "center": "the central square of the picture is taken for one",
    "given": "the frames that are given are crops of one",
}


def write_card(folder: str | Path, repo_id: str | None = None) -> Path:
    """
    Write the model card `README.md` of a trained model's folder, from its `config.json`, `processor_config.json` and
    `metrics.json`. Without the last there are no figures on it, and it says so. A card that was written before is replaced,
    one that was edited is not.

    Args:
        repo_id: repository of the Hub to which the folder goes, for the example of use and as the model's name.

    Returns:
        The path of the card.

    Raises:
        FileExistsError: if a card is there that a hand wrote or edited.
        OSError: if the folder holds no model and processor.
        ValueError: if `metrics.json` is not what training leaves.
    """
    path = Path(folder, "README.md")
    if is_edited(path):
        raise FileExistsError(f"{path} was written or edited by hand: move it elsewhere, and a new one is written.")
    text = f"{_folder_card(Path(folder), repo_id)}\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(f"{text}\n<!-- As jca.cards wrote it, while the SHA-256 of all above is {digest} -->\n", "utf-8")
    return path


def is_edited(card: Path) -> bool:
    """Whether a file is there that [`write_card`] did not leave so."""
    if not card.exists():
        return False
    text = card.read_text("utf-8")
    record = UNEDITED.search(text)
    return not record or hashlib.sha256(text[: record.start()].encode()).hexdigest() != record[1]


def differing_figures(folder: Path) -> list[str]:
    """
    What the metadata of the card in a model's folder says otherwise than its `metrics.json`, as "CCC valence 0.838, not
    0.721"; figures may be rounded to three digits, and those of other measures are not looked at.

    Raises:
        OSError, ValueError, yaml.YAMLError: as `write_card`, or if the card's metadata can not be read.
    """
    said = ModelCard.load(folder / "README.md").data.eval_results or []
    if not said or not (folder / "metrics.json").exists():
        return []
    wrong = []
    for own in _folder_card(folder, None).data.eval_results or []:
        values = [x.metric_value for x in said if x.metric_name == own.metric_name]
        numbers = [value for value in values if isinstance(value, int | float)]
        if values and not any(math.isclose(value, own.metric_value, abs_tol=6e-4) for value in numbers):
            wrong.append(f"{own.metric_name} {values[0]}, not {own.metric_value:.3f}")
    return wrong


def read_metrics(file: Path) -> dict[str, Any]:
    """
    What training left in a `metrics.json`.

    Raises:
        OSError, ValueError: if it can not be read, or is no such file.
    """
    try:
        metrics = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} can not be read as JSON: {error}. Give a `metrics.json` of training.") from error
    if not isinstance(metrics, dict) or "best" not in metrics:
        raise ValueError(
            f"{file} has no entry `best`: it is not what training leaves beside a model. Move it elsewhere, and the "
            "card has no figures."
        )
    if not all(isinstance(metrics.get(key) or {}, dict) for key in ("best", "reported")):
        raise ValueError(
            f"{file} has something else than figures in `best` or `reported`: it is not what training left."
        )
    return metrics


def _folder_card(folder: Path, repo_id: str | None) -> ModelCard:
    if not (folder / "config.json").exists():
        raise OSError(f"{folder} holds no model: there is no config.json in it.")
    config, processor = AutoConfig.from_pretrained(folder), JCAProcessor.from_pretrained(folder)
    file = folder / "metrics.json"
    metrics = read_metrics(file) if file.exists() else {}
    wanted = ["ccc", *(f"{kind}_{name}" for kind in METRICS for name in config.id2label.values())]
    figures = metrics.get("reported") or metrics.get("best") or {}
    if missing := [name for name in wanted if metrics and not isinstance(figures.get(name), int | float)]:
        raise ValueError(f"{file} has no {', '.join(missing)}, and is of another model or was changed.")
    example = (
        (f'model="{repo_id}", revision="COMMIT"', "or a folder of it") if repo_id else ('model="."', "this folder")
    )
    try:
        return model_card(config, processor, repo_id or folder.resolve().name, example, metrics)
    except (AttributeError, KeyError, TypeError, UndefinedError) as error:
        raise ValueError(f"{file} lacks what training leaves in it, or has something else there: {error}.") from error


def recipe_card(path: str | Path, metrics: dict[str, Any] | None = None) -> ModelCard:
    """
    The card of the model that a recipe's third stage makes, with the content of its `metrics.json`, or without as that of a
    model that was not trained.

    Raises:
        ValueError: if the recipe is not in order.
        OSError: if encoders that it names can not be reached.
    """
    recipe = load_recipe(path)
    metrics = metrics or {"recipe": recipe.path, "settings": {"encoders": recipe.encoders}}
    folder = f"{recipe.output_dir}/seed-{metrics.get('seed', 0)}/fusion"
    example = (f'model="{folder}"', "as training leaves it")
    return model_card(JCAConfig(**recipe.model), build_processor(recipe), Path(path).stem, example, metrics)


def corpus_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """
    On which corpus a model was trained, as the entry of `CORPORA`, with its `kind`. Training has recorded it; of a recipe
    alone, and where it has not, the recipe's name begins with the corpus's.
    """
    records = [record for record in metrics.get("corpus", {}).values() if record]
    if records:
        kinds = {record["kind"] for record in records}
    else:
        recipe = Path(metrics.get("recipe") or "").name
        prefixes = {"demo": "synthetic", "affwild2": "affwild2"}
        kinds = {kind for prefix, kind in prefixes.items() if recipe.startswith(prefix)}
    kind = kinds.pop() if len(kinds) == 1 else None  # of several, none holds for all
    about = {**CORPORA[kind], "kind": kind}
    if kind == "csv":
        names = sorted({re.sub(r"[^\w .-]", "_", record["name"]) for record in records})
        about["name"] = f"corpus {' and '.join(names)}"
    if hub := _hub(metrics):
        about["datasets"] = [hub[0]]
    return about


def _hub(metrics: dict[str, Any]) -> tuple[str, str] | None:
    """The Hub's data set, and its commit, of which all rows are."""
    records = metrics.get("corpus", {}).values()
    found = {(record["hub"], record["revision"]) if record and "hub" in record else None for record in records}
    return found.pop() if len(found) == 1 else None


def model_card(
    config: JCAConfig, processor: JCAProcessor, name: str, example: tuple[str, str], metrics: dict[str, Any]
) -> ModelCard:
    """
    A card with the metadata that the Hub reads.

    Args:
        name: of the model, in `model-index`.
        example: what opens the model, as arguments of `pipeline`, and a comment on it, for the example of use.
        metrics: content of `metrics.json`, or of a model without figures what is known: its `recipe` and `settings`, if any.
    """
    about, labels = corpus_of(metrics), list(config.id2label.values())
    corpus, settings, stage = about["kind"], metrics.get("settings", {}), metrics.get("stage")
    encoders = settings.get("encoders", {})
    base_models = [source for source in encoders.values() if _is_repository(source)]
    figures, selected_by = metrics.get("reported") or metrics.get("best"), metrics.get("selected_by", "validation")
    split = metrics.get("reported_on", selected_by) if "reported" in metrics else selected_by
    # an encoder of clips is scored on them, one that reads tracks on frames
    on_clips = stage in config.modalities and not getattr(getattr(config, f"{stage}_config"), "tracks", False)
    units = "clips" if on_clips else "frames"
    data = ModelCardData(
        library_name="transformers",
        # the nearest that the Hub has: it knows no regression over time, and no task of faces and sound together
        pipeline_tag="video-classification",
        license=about["license"],
        license_name=about.get("license_name"),
        license_link=about.get("license_link"),
        datasets=about["datasets"] or None,
        base_model=base_models or None,
        metrics=[hub_name for _, hub_name in METRICS.values()] if figures else None,
        tags=[
            *("audio-visual", "emotion-recognition", "valence-arousal", config.fusion.replace("_", "-")),
            *(["synthetic"] if corpus == "synthetic" else []),
        ],
        model_name=name if figures else None,
        eval_results=_eval_results(figures, labels, about, split, units) if figures else None,
    )
    clip = processor.clip_length * processor.clip_stride / processor.frame_rate
    sees, hears = ("video" in config.modalities), ("audio" in config.modalities)
    return ModelCard.from_template(
        data,
        TEMPLATES / "model_card.md",
        corpus=corpus,
        corpus_name=about["name"],
        recipe_only=not figures and "recipe" in metrics,
        trained=figures is not None,
        labels=labels,
        sees=sees,
        hears=hears,
        senses="face and voice" if sees and hears else "the face" if sees else "the voice",
        fusion=_describe_fusion(config),
        temporal=_describe_temporal(config),
        encoders=[
            f"Encoder of the {noun}: `{_shown(encoders.get(modality) or getattr(config, f'{modality}_config').model_type)}`"
            for modality, noun in (("video", "face"), ("audio", "voice"))
            if modality in config.modalities
        ],
        clip_length=processor.clip_length,
        clip_stride=processor.clip_stride,
        num_clips=processor.num_clips,
        frame_rate=f"{processor.frame_rate:g}",
        clip_seconds=f"{clip:.2f}",
        window_seconds=f"{clip * processor.num_clips:.1f}",
        faces=FACES[processor.video_processor.faces] if sees else None,
        detects=sees and processor.video_processor.faces == "detect",
        arguments=example[0],
        comment=example[1],
        backend=getattr(config, "backend", None),  # of exported models
        precision=getattr(config, "precision", None),
        figures=figures,
        units=units,
        split=split,
        hop=metrics.get("hop"),
        selected_by=selected_by,
        flattered=split == selected_by,
        recipe=_shown(metrics["recipe"]) if metrics.get("recipe") else None,
        stage=stage,
        fold=metrics.get("fold"),
        base_models=base_models,
        processes=settings.get("processes"),
        mixed_precision=settings.get("mixed_precision"),
        duration=datetime.timedelta(seconds=round(metrics.get("seconds", 0))),
        date=metrics.get("time", "")[:10],
        **{key: metrics.get(key) for key in ("seed", "hardware", "versions", "commit")},
    )


def _eval_results(figures: dict, labels: list[str], about: dict, split: str, units: str) -> list[EvalResult]:
    """The figures for `model-index`: each measure of each output, and the mean CCC."""
    keys = [(f"{kind}_{name}", kind, name) for kind in METRICS for name in labels]
    return [
        EvalResult(
            task_type="video-classification",
            task_name=f"{' and '.join(labels)} of {units}",
            dataset_type=next(iter(about["datasets"]), "unknown"),
            dataset_name=about["name"],
            dataset_split=split,
            metric_type=METRICS[kind][1],
            metric_name=f"{METRICS[kind][0]} {name}",
            metric_value=figures[key],
        )
        for key, kind, name in [*keys, ("ccc", "ccc", "mean")]
    ]


def eval_results_file(metrics: dict[str, Any]) -> str | None:
    """
    The content of `.eval_results/jca.yaml`: CCC of each output and their mean on the Hub's data set of which all rows were.
    None for a corpus that does not lie there, such as Aff-Wild2: an entry names one. The Hub lists the entries of data sets
    that it has registered as benchmarks, with tasks of these names, and passes over others.
    """
    hub, figures = _hub(metrics), metrics.get("reported")
    if not hub or not figures:
        return None
    notes = f"{corpus_of(metrics)['name']}, {metrics['reported_on']}"
    entries = [
        EvalResultEntry(hub[0], name, value, hub[1], date=metrics["time"], notes=notes)
        for name, value in figures.items()
        if name.split("_")[0] == "ccc"
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)


def _describe_fusion(config: JCAConfig) -> str | None:
    if len(config.modalities) == 1:
        return None
    words = "concatenation" if config.fusion == "concat" else config.fusion.replace("_attention", "-attention")
    fusion = words.replace("_", " ")
    times = f", applied {config.num_recursions} times" if config.num_recursions > 1 else ""
    return f"{'gated ' if config.gated else ''}{fusion}{times}"


def _describe_temporal(config: JCAConfig) -> str | None:
    if not config.temporal:
        return None
    places = {"video": "the face", "audio": "the voice", "joint": "what the fusion gives"}
    return f"{config.temporal_layer.upper()} on {' and '.join(places[name] for name in config.temporal)}"


def _is_repository(source: str) -> bool:
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return not Path(source).exists()


def _shown(path: str) -> str:
    """A path that leads out of the working folder is its machine's: the last part of it. One that does not, from there."""
    if not Path(path).is_absolute() and ".." not in Path(path).parts:
        return path
    whole, here = Path(os.path.abspath(path)), Path.cwd()
    return whole.relative_to(here).as_posix() if whole.is_relative_to(here) else whole.name


def public_metrics(metrics: Any) -> Any:
    """The content of `metrics.json` for others: paths as far as they are not the machine's."""
    match metrics:
        case dict():
            return {name: public_metrics(value) for name, value in metrics.items()}
        case list():
            return [public_metrics(value) for value in metrics]
        case str():
            return _shown(metrics)
    return metrics


# The synthetic corpus -------------------------------------------------------------------------------------------------


def dataset_card(root: str | Path, repo_id: str) -> DatasetCard:
    """
    The card of a corpus that `jca.synthetic.make_synthetic` made in `root`.

    Raises:
        ValueError: if it did not.
    """
    settings = read_settings(Path(root) / SETTINGS_FILE)
    data = DatasetCardData(
        license="apache-2.0",
        pretty_name="Synthetic faces and voices with valence and arousal",
        annotations_creators="machine-generated",
        source_datasets=["original"],
        size_categories=["n<1K"],
        task_categories=["video-classification"],
        tags=["synthetic", "audio-visual", "emotion-recognition", "valence-arousal"],
        viewer=False,  # the folders of a release are no table
    )
    options = " ".join(f"--{name} {value}" for name, value in settings.items() if name != "design")
    return DatasetCard.from_template(data, TEMPLATES / "dataset_card.md", repo_id=repo_id, options=options, **settings)
