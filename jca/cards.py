"""Model cards, written from the files that training leaves, and the card of the synthetic corpus. No figure on a card comes
from a hand."""

import datetime
import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import UndefinedError

from configuration_jca import JCAConfig
from jca.preparation import INDEX
from jca.recipes import build_processor, load_recipe
from jca.synthetic import SETTINGS_FILE
from processing_jca import JCAProcessor


TEMPLATES = Path(__file__).parent / "templates"
METRICS = {"ccc": ("CCC", "ccc"), "mse": ("MSE", "mse"), "pcc": ("PCC", "pearsonr")}  # for people, for the Hub
# How each corpus is called and what the Hub is told of it. Neither lies there under this name.
CORPORA = {
    "synthetic": {"name": "synthetic corpus", "datasets": ["jca-synthetic"], "license": "apache-2.0"},
    "affwild2": {
        "name": "Aff-Wild2",
        "datasets": ["aff-wild2"],
        "license": "other",
        "license_name": "aff-wild2-research-only",
        "license_link": "https://ibug.doc.ic.ac.uk/resources/aff-wild2/",
    },
    None: {"name": "a corpus that is not named", "datasets": [], "license": "unknown"},
}
FACES = {
    "detect": "found, followed and aligned",
    "center": "the central square of the picture is taken for one",
    "given": "the frames that are given are crops of one",
}


def write_card(folder: str | Path, repo_id: str | None = None) -> Path:
    """
    Write the model card `README.md` of a trained model's folder, from its `config.json`, `processor_config.json` and
    `metrics.json`. Without the last there are no figures on it, and it says so.

    Args:
        repo_id: repository of the Hub to which the folder goes, for the example of use and as the model's name.

    Returns:
        The path of the card.

    Raises:
        OSError: if the folder holds no model and processor.
        ValueError: if `metrics.json` is not what training leaves.
    """
    folder = Path(folder)
    config, processor = JCAConfig.from_pretrained(folder), JCAProcessor.from_pretrained(folder)
    file, metrics = folder / "metrics.json", {}
    if file.exists():
        metrics = json.loads(file.read_text())
        if not isinstance(metrics, dict) or "best" not in metrics:
            raise ValueError(
                f"{file} has no entry `best`: it is not what training leaves beside a model. Move it elsewhere, and the "
                "card has no figures."
            )
    example = (repo_id, "or a folder of it") if repo_id else (".", "this folder")
    path = folder / "README.md"
    try:
        card = model_card(config, processor, repo_id or folder.resolve().name, example, metrics)
    except UndefinedError as error:
        raise ValueError(f"{file} lacks what training leaves in it: {error}.") from error
    path.write_text(f"{card}\n", encoding="utf-8")
    return path


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
    example = (f"{recipe.output_dir}/seed-{metrics.get('seed', 0)}/fusion", "as training leaves it")
    return model_card(JCAConfig(**recipe.model), build_processor(recipe), Path(path).stem, example, metrics)


def corpus_of(metrics: dict[str, Any]) -> str | None:
    """
    On which corpus a model was trained, a key of `CORPORA`. The prepared files say what is synthetic, by the names of its
    videos; where they are no longer there, and for Aff-Wild2, the recipe does, whose name begins with its corpus's.
    """
    index = Path(metrics["data"], INDEX) if "data" in metrics else None
    if index and index.exists():
        files = [Path(name).stem for split in json.loads(index.read_text()).values() for name in split]
        if files and all(re.fullmatch(r"synthetic-\d{4}", name) for name in files):
            return "synthetic"
    recipe = Path(metrics.get("recipe") or "").name
    prefixes = {"demo": "synthetic", "affwild2": "affwild2"}
    return next((corpus for prefix, corpus in prefixes.items() if recipe.startswith(prefix)), None)


def model_card(
    config: JCAConfig, processor: JCAProcessor, name: str, example: tuple[str, str], metrics: dict[str, Any]
) -> ModelCard:
    """
    A card with the metadata that the Hub reads.

    Args:
        name: of the model, in `model-index`.
        example: folder or repository of the model, and a comment on it, for the example of use.
        metrics: content of `metrics.json`, or of a model without figures what is known: its `recipe` and `settings`, if any.
    """
    corpus, labels = corpus_of(metrics), list(config.id2label.values())
    about, settings, stage = CORPORA[corpus], metrics.get("settings", {}), metrics.get("stage")
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
        model=example[0],
        model_comment=example[1],
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
    """The figures for `model-index`: each measure of each output, and the mean CCC. The newer files `.eval_results/*.yaml`
    are of corpora that the Hub has registered as benchmarks, and these are not."""
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


def _describe_fusion(config: JCAConfig) -> str | None:
    if len(config.modalities) == 1:
        return None
    words = {"concat": "concatenation", "joint_cross_attention": "joint cross-attention"}
    fusion = words.get(config.fusion, config.fusion.replace("_", " "))
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
    """A path that is absolute is its machine's: the last part of it."""
    return Path(path).name if Path(path).is_absolute() else path


# The synthetic corpus -------------------------------------------------------------------------------------------------


def dataset_card(root: str | Path, repo_id: str) -> DatasetCard:
    """
    The card of a corpus that `jca.synthetic.make_synthetic` made in `root`.

    Raises:
        ValueError: if it did not.
    """
    file = Path(root) / SETTINGS_FILE
    if not file.exists():
        raise ValueError(
            f"{root} holds no synthetic corpus: there is no {SETTINGS_FILE}. Make one with scripts/make_synthetic.py."
        )
    settings = json.loads(file.read_text())
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


def push_synthetic(root: str | Path, repo_id: str, private: bool = False) -> str:
    """
    Put a synthetic corpus and its card on the Hub, as a dataset; `snapshot_download` with `local_dir` gives a folder back
    from which `make demo` goes on. It has a file for each frame, tens of thousands for the corpus of the demo.

    Returns:
        Address of the repository.

    Raises:
        ValueError: if there is no synthetic corpus in `root`, or the Hub does not accept the card.
        huggingface_hub.errors.HfHubHTTPError: if the Hub refuses, for want of a token for example.
    """
    card, api = dataset_card(root, repo_id), HfApi()
    url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    card.push_to_hub(repo_id, commit_message="Card of the synthetic corpus")  # validated by the Hub
    api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=root,
        ignore_patterns=["README.md", "*.part", "*.part/*"],  # what is being written
        commit_message="Synthetic corpus",
    )
    return str(url)
