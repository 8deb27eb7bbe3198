"""Checkpoints of the authors' code, and of the encoders it uses, -> one folder that `AutoModel.from_pretrained` opens.

Nothing of their code is here: names and shapes of tensors say what each is. Their weights carry no licence.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCardData
from torch import Tensor

from configuration_jca import MODALITIES, JCAConfig
from jca import __version__
from modeling_jca import JCAModel
from processing_jca import JCAProcessor, JCAVideoProcessor


LABELS = ("valence", "arousal")
CONTAINERS = ("state_dict", "net")  # under which training scripts keep the weights beside their scores
WRAPPERS = re.compile(r"^(module\.)?(i3d_WSDDA\.|temporal\.)?")  # modules around those that are converted
TENSOR_NAMES = {"weight_g": "length", "weight_v": "direction"}  # of weight normalisation
NUMPY_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS = [  # the scores, as numpy 1 and numpy 2 name them
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype("float32")),
    type(np.dtype("float64")),
]


# Names: module of theirs -> module of ours ---------------------------------------------------------------------------


def r2plus1d_names(prefix: str = "") -> dict[str, str]:
    """torchvision's `r2plus1d_18`."""
    names = {f"stem.{i}": f"stem.{i}" for i in (0, 1, 3, 4)}
    for stage in range(4):
        for block in range(2):
            theirs, ours = f"layer{stage + 1}.{block}", f"stages.{stage}.{block}"
            for conv in (1, 2):
                names |= {f"{theirs}.conv{conv}.0.{i}": f"{ours}.conv{conv}.{i}" for i in (0, 1, 3)}
                names[f"{theirs}.conv{conv}.1"] = f"{ours}.norm{conv}"
            names |= {f"{theirs}.downsample.{i}": f"{ours}.shortcut.{i}" for i in (0, 1)}
    return {prefix + theirs: f"video_encoder.{ours}" for theirs, ours in names.items()}


def resnet_names(prefix: str = "") -> dict[str, str]:
    """torchvision's `resnet18`."""
    names = {"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization"}
    for stage in range(4):
        for block in range(2):
            theirs, ours = f"layer{stage + 1}.{block}", f"encoder.stages.{stage}.layers.{block}"
            for conv in (1, 2):
                names[f"{theirs}.conv{conv}"] = f"{ours}.layer.{conv - 1}.convolution"
                names[f"{theirs}.bn{conv}"] = f"{ours}.layer.{conv - 1}.normalization"
            names[f"{theirs}.downsample.0"] = f"{ours}.shortcut.convolution"
            names[f"{theirs}.downsample.1"] = f"{ours}.shortcut.normalization"
    return {prefix + theirs: f"audio_encoder.{ours}" for theirs, ours in names.items()}


def i3d_names() -> dict[str, str]:
    """The common PyTorch release of Inception-I3D, and the authors' TCN."""
    names = {"Conv3d_1a_7x7": "stem.0", "Conv3d_2b_1x1": "stem.2", "Conv3d_2c_3x3": "stem.3"}
    branches = {"b0": "0.0", "b1a": "1.0", "b1b": "1.1", "b2a": "2.0", "b2b": "2.1", "b3b": "3.1"}
    for stage, blocks in enumerate(("bc", "bcdef", "bc")):
        for block, letter in enumerate(blocks):
            for theirs, ours in branches.items():
                names[f"Mixed_{stage + 3}{letter}.{theirs}"] = f"stages.{stage}.{block}.branches.{ours}"
    names = {
        f"{theirs}.{layer}": f"{ours}.{i}" for theirs, ours in names.items() for layer, i in (("conv3d", 1), ("bn", 2))
    }
    # the convolutions of a level stand in a checkpoint under two names
    parts = {"net.0": "conv1", "net.4": "conv2", "conv1": "conv1", "conv2": "conv2", "downsample": "shortcut"}
    for level in range(10):
        names |= {f"network.{level}.{theirs}": f"tcn.{level}.{ours}" for theirs, ours in parts.items()}
    return {theirs: f"video_encoder.{ours}" for theirs, ours in names.items()}


def joint_cross_attention_names() -> dict[str, str]:
    """`cam.py` of the authors' repositories, for one output (which one it does not say) or two."""
    names = {}
    for theirs, ours, number in (("a", "audio", 1), ("v", "video", 2)):
        names[f"encoder{number}"] = f"{ours}_projection"
        for layer, part in (("affine_", "joint"), ("W_", "own"), ("W_c", "correlated"), ("W_h", "out")):
            names[layer + theirs] = f"fusion.{ours}_attention.{part}"
    for head, label in (("vregressor", "valence"), ("aregressor", "arousal"), ("regressor", "?")):
        names |= {f"{head}.0": f"regressors.{label}.fc1", f"{head}.2": f"regressors.{label}.fc2"}
    return names


def dense_co_attention_names() -> dict[str, str]:
    """`orig_cam.py` of the authors' later repositories, with or without its LSTMs."""
    layer = "coattn.dcn_layers.0"
    names = {f"{layer}.dense_coattn.query_linear": "fusion.query"}
    for number, modality in ((1, "video"), (2, "audio")):
        names[f"{layer}.dense_coattn.key{number}_linear"] = f"fusion.{modality}_attention.key"
        names[f"{layer}.dense_coattn.value{number}_linear"] = f"fusion.{modality}_attention.value"
        names[f"{layer}.linears.{number - 1}.0"] = f"fusion.{modality}_attention.out"
    spatial = {"video": "video", "audio": "audio", "v": "video_score", "g": "audio_score", "h": "score", "feat": "out"}
    names |= {f"video_attn.attn.affine_{theirs}": f"spatial_attention.{ours}" for theirs, ours in spatial.items()}
    for theirs, ours in (("Joint", "joint"), ("audio_extract", "audio"), ("video_extract", "video")):
        names |= {f"{theirs}{part}": f"{ours}_temporal{part}" for part in ("", ".rnn", ".linear")}
    for head, label in (("vregressor", "valence"), ("aregressor", "arousal")):
        names |= {f"{head}.0": f"regressors.{label}.fc1", f"{head}.3": f"regressors.{label}.fc2"}
    return names


# What the shapes of a checkpoint say of the model ---------------------------------------------------------------------
# Each function takes the weights under our names, brings them into our order in place, and returns arguments of JCAConfig
# and sentences for the model card.


def adapt_encoders(weights: dict[str, Tensor]) -> tuple[dict, list[str]]:
    """Settings of our configuration and notes for the card; the weights are changed in place. Of their visual encoder."""
    stem, notes = weights.get("video_encoder.stem.0.weight"), []
    if stem is None:
        return {}, notes
    if stem.shape[1] == 4:
        weights["video_encoder.stem.0.weight"] = stem[:, :3]
        notes.append(
            "Left out: the fourth input channel of the stem, a mask of landmarks that the authors' fusions lack."
        )
    return {"video_config.model_type": "r2plus1d"}, notes


def adapt_i3d(weights: dict[str, Tensor]) -> tuple[dict, list[str]]:
    """As [`adapt_encoders`], of their Inception-I3D with a TCN."""
    levels = [weights[name] for name in sorted(weights) if re.search(r"\.tcn\.\d\.conv1\.direction$", name)]
    settings = {"video_config.model_type": "i3d"}
    if levels:
        settings["video_config.tcn_channels"] = [len(level) for level in levels]
        settings["video_config.tcn_kernel_size"] = levels[0].shape[-1]
    return settings, []


def adapt_joint_cross_attention(weights: dict[str, Tensor]) -> tuple[dict, list[str]]:
    """As [`adapt_encoders`], of their joint cross-attention."""
    projection_size = len(weights["video_projection.weight"])
    heads = [name for name in weights if name.endswith(".fc1.weight")]
    regressor_size, head_size = weights[heads[0] if heads else "regressors.fc1.weight"].shape
    attended = head_size == 2 * projection_size
    # they put audio first where the paper and we put video first
    for name in ["fusion.video_attention.correlated.weight", "fusion.audio_attention.correlated.weight"]:
        weights[name] = weights[name].roll(projection_size, dims=1)
    for name in heads if attended else []:
        weights[name] = weights[name].roll(projection_size, dims=1)
    settings = {
        "fusion": "joint_cross_attention",
        "num_clips": len(weights["fusion.video_attention.joint.weight"]),
        "attention_size": len(weights["fusion.video_attention.own.weight"]),
        "projection_size": projection_size,
        "regressor_size": regressor_size,
        "regressor_act": "linear",
        "head_input": "attended" if attended else "raw_video",
    }
    unused = "Its regressors read the visual feature and the attended visual one, and not the attended audio."
    return settings, [] if attended else [unused]


def adapt_dense_co_attention(weights: dict[str, Tensor]) -> tuple[dict, list[str]]:
    """As [`adapt_encoders`], of their dense co-attention."""
    settings = {
        "video_config.model_type": "r2plus1d",
        "video_config.spatial_size": math.isqrt(len(weights["spatial_attention.video_score.weight"])),
        "fusion": "dense_co_attention",
        "num_clips": len(weights["fusion.video_attention.key.weight"]),
        "projection_size": None,
        "normalize_features": True,
        "scrambled_positions": True,
        "temporal": [part for part in ("video", "audio", "joint") if f"{part}_temporal.init_hidden" in weights],
        "regressor_size": len(weights["regressors.valence.fc1.weight"]),
        "regressor_act": "relu",
    }
    return settings, ["It views the visual map as the authors' code does, which mixes channels and places."]


# Families ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint: a pattern with which a name begins that no other kind has, its modules under our names, and the
    beginnings of names that are no part of the model, with what they are."""

    name: str
    signature: str
    names: dict[str, str]
    adapt: Callable[[dict[str, Tensor]], tuple[dict, list[str]]]
    left_out: dict[str, str] = field(default_factory=dict)


FAMILIES = (
    Family(
        "the two-stream encoders, R(2+1)D-18 and ResNet-18",
        r"(video_model\.r2plus1d|audio_model\.resnet)\.",
        r2plus1d_names("video_model.r2plus1d.") | resnet_names("audio_model.resnet."),
        adapt_encoders,
        {"fc.": "classifier of both streams"},
    ),
    Family(
        "the visual encoder R(2+1)D-18",
        r"layer1\.0\.conv1\.0\.0\.weight",
        r2plus1d_names(),
        adapt_encoders,
        {"fc.": "classifier"},
    ),
    Family(
        "the audio encoder ResNet-18",
        r"layer1\.0\.conv1\.weight",
        resnet_names(),
        adapt_encoders,
        {"fc.": "classifier"},
    ),
    Family(
        "the visual encoder Inception-I3D, its TCN or both",
        r"Conv3d_1a_7x7\.|network\.0\.",
        i3d_names(),
        adapt_i3d,
        {"logits.": "classifier", "predictions.": "head of the encoder", "regressor.": "head of the encoder"},
    ),
    Family(
        "joint cross-attention with its regressors (the authors' cam.py)",
        r"affine_[av]\.",
        joint_cross_attention_names(),
        adapt_joint_cross_attention,
    ),
    Family(
        "dense co-attention with its regressors (the authors' orig_cam.py)",
        r"coattn\.dcn_layers\.",
        dense_co_attention_names(),
        adapt_dense_co_attention,
    ),
)


# One file ------------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """
    The weights of a `.pt`, `.pth`, `.pth.tar` or `.t7` file that PyTorch saved, in their shapes, without what a training
    script or a module wrapped around them. Tensors and numbers alone are read: no code that a file may hold is run.

    Raises:
        ValueError: if the file holds anything else or can not be read.
    """
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of many kinds: bytes that are no pickle are read as instructions
        if object_name := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} holds the object {object_name[1]} beside tensors, and to load it is to run whatever code is in the "
                "file. If you trust who made it, save the tensors alone where that code is at home: "
                "torch.save(model.state_dict(), ...)."
            ) from error
        raise ValueError(f"{path} can not be read as a file of PyTorch: was it downloaded completely?") from error
    for name in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        keys = f" with the keys {some(content)}" if isinstance(content, dict) else ""
        raise ValueError(
            f"{path} holds a {type(content).__name__}{keys}; give a state dict: names and tensors, alone or under the key "
            f"{' or '.join(CONTAINERS)}."
        )
    return {WRAPPERS.sub("", key): tensor for key, tensor in content.items()}


@dataclass
class Part:
    """What one file gives to a model."""

    path: Path
    family: Family
    weights: dict[str, Tensor]  # under our names
    theirs: dict[str, str]  # our name -> theirs
    settings: dict
    notes: list[str]


def read_part(path: str | Path, labels: list[str]) -> Part:
    """
    Recognise a checkpoint by its names and bring it to ours.

    Args:
        labels: what the files with one output predict; a file that has one takes the first from the list.

    Raises:
        ValueError: if it is of no known family, or has names that this family has not.
    """
    path, state = Path(path), read_checkpoint(path)
    family = next((f for f in FAMILIES if any(re.match(f.signature, key) for key in state)), None)
    if family is None:
        known = "".join(f"\n- {family.name}" for family in FAMILIES)
        raise ValueError(f"{path} is of no family that is known here. It has {some(state)}. Known are:{known}")
    weights, theirs, left_out, unknown = {}, {}, {}, []
    for key, tensor in state.items():
        module, _, last = key.rpartition(".")
        what = next((what for beginning, what in family.left_out.items() if key.startswith(beginning)), None)
        if what is not None:
            left_out.setdefault(what, []).append(key)
        elif module not in family.names:
            unknown.append(key)
        else:
            name = f"{family.names[module]}.{TENSOR_NAMES.get(last, last)}"
            if name in weights and not torch.equal(weights[name], tensor):
                raise ValueError(f"{path}: {theirs[name]} and {key} are two names of one tensor, and differ.")
            weights[name], theirs[name] = tensor, key
    if unknown:
        raise ValueError(f"{path} is {family.name}, and has what can not be placed there: {some(unknown)}.")
    if any(name.startswith("regressors.?.") for name in weights):
        if not labels:
            raise ValueError(
                f"{path} has one output and does not say of what: add --label valence or --label arousal, one for each such "
                "file."
            )
        label = labels.pop(0)
        weights = {name.replace("?", label): tensor for name, tensor in weights.items()}
        theirs = {name.replace("?", label): key for name, key in theirs.items()}
    try:
        settings, notes = family.adapt(weights)
    except KeyError as error:
        raise ValueError(f"{path} is {family.name}, and lacks what is {error.args[0]} here.") from error
    notes += [f"Left out: {some(keys)} ({what})." for what, keys in left_out.items()]
    return Part(path, family, weights, theirs, settings, notes)


def some(names: Iterable[str], most: int = 6) -> str:
    """The first names of a list that may be long."""
    names = [f"`{name}`" for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# One model -----------------------------------------------------------------------------------------------------------


def join(parts: list[Part]) -> tuple[dict, dict[str, Tensor]]:
    """
    Settings and weights of all files.

    Raises:
        ValueError: if two files say different things of one setting or one weight.
    """
    settings, weights, sources = {}, {}, {}
    for part in parts:
        for name, value in part.settings.items():
            path = sources.setdefault(name, part.path)
            if settings.setdefault(name, value) != value:
                raise ValueError(
                    f"{path} asks for {name}={settings[name]!r} and {part.path} for {name}={value!r}: they are not of one "
                    "model. Convert each into a folder of its own."
                )
        if differing := [
            name for name, w in part.weights.items() if name in weights and not torch.equal(weights[name], w)
        ]:
            raise ValueError(
                f"{sources[differing[0]]} and {part.path} both hold {part.family.name}, trained separately: they differ in "
                f"{some(part.theirs[name] for name in differing)}. One model has one of each. Convert each into a folder of "
                "its own."
            )
        weights |= part.weights
        sources |= dict.fromkeys(part.weights, part.path)
    return settings, weights


def build_config(settings: dict, weights: dict[str, Tensor]) -> JCAConfig:
    """The model that has these weights; an encoder that has none is of the default size."""
    labels = [label for label in LABELS if f"regressors.{label}.fc1.weight" in weights]
    given = [modality for modality in MODALITIES if any(name.startswith(f"{modality}_encoder.") for name in weights)]
    modalities = MODALITIES if labels else given
    arguments: dict[str, Any] = {"fusion": "concat"} if len(modalities) == 1 else {}
    for name, value in settings.items():
        section, _, name = name.rpartition(".")
        (arguments.setdefault(section, {}) if section else arguments)[name] = value
    return JCAConfig(modalities=modalities, id2label=dict(enumerate(labels or LABELS)), **arguments)


def part_of(name: str) -> str:
    """The part of the model that a weight belongs to: each comes from the files as a whole or not at all."""
    module = name.split(".")[0]
    return module.replace("_", " ") if module.endswith("_encoder") else "fusion with its regressors"


def numbered(name: str, config: JCAConfig) -> str:
    """`regressors.valence.fc1` -> `regressors.0.fc1`."""
    numbers = {label: number for number, label in config.id2label.items()}
    return re.sub(r"^regressors\.(\w+)", lambda match: f"regressors.{numbers.get(match[1], match[1])}", name)


def check(config: JCAConfig, weights: dict[str, Tensor], parts: list[Part]) -> list[str]:
    """
    Compare weights with those of the model.

    Returns:
        The parts of the model that have none.

    Raises:
        ValueError: if a weight has no place or another shape, or one is missing from a part that has others.
    """
    theirs = {numbered(ours, config): key for part in parts for ours, key in part.theirs.items()}
    modules = {numbered(ours, config): module for part in parts for module, ours in part.family.names.items()}
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in JCAModel(config).state_dict().items()}
    if unknown := [theirs[name] for name in weights if name not in shapes]:
        raise ValueError(f"The model that these files make has no place for {some(unknown)}.")
    misfits = [
        f"{theirs[name]} {tuple(tensor.shape)} instead of {shapes[name]}"
        for name, tensor in weights.items()
        if tensor.shape != shapes[name]
    ]
    if misfits:
        raise ValueError(f"Shapes are not those of the model that these files make: {some(misfits)}.")
    given, missing = {part_of(name) for name in weights}, []
    for name in shapes:
        module, _, last = name.rpartition(".")
        # PyTorch counts batches since 0.4.1, and no model here reads the count
        if part_of(name) in given and name not in weights and last != "num_batches_tracked":
            missing.append(f"{modules.get(module, module)}.{last}")
    if missing:
        raise ValueError(f"The files hold a part of the model without {some(missing)}.")
    return sorted({part_of(name) for name in shapes} - given)


def build_processor(config: JCAConfig) -> JCAProcessor:
    """What the encoders were trained on: I3D on pixels in [-1, 1] at 224, R(2+1)D-18 on those of Kinetics at 112."""
    i3d = {"size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    video_processor = JCAVideoProcessor(**(i3d if config.video_config.model_type == "i3d" else {}))
    return JCAProcessor(video_processor=video_processor, num_clips=config.num_clips)


def convert(files: Sequence[str | Path], output: str | Path, labels: Sequence[str] = ()) -> list[str]:
    """
    Make one model of one or more checkpoints, and save it with a processor and a model card.

    Args:
        files: the authors' two-stream encoders, torchvision's R(2+1)D-18 or ResNet-18, the common release of Inception-I3D,
            the authors' TCN on it, their joint cross-attention (`cam.py`) or dense co-attention (`orig_cam.py`). A part of
            the model that is in none of them has random weights, the same ones each time.
        output: a folder that does not exist or is empty.
        labels: `"valence"` or `"arousal"` for each file with one output, in the order of the files.

    Returns:
        Sentences that say what became of the files, as they stand in the model card.

    Raises:
        ValueError: if a file can not be read or placed wholly, or files do not fit together; it names the keys.
        FileExistsError: if there is something in `output`.
    """
    output, labels = Path(output), list(labels)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is not empty: name a new folder.")
    if wrong := set(labels) - set(LABELS):
        raise ValueError(f"labels has {', '.join(sorted(wrong))}: choose among {', '.join(LABELS)}.")
    parts = [read_part(path, labels) for path in files]
    if labels:
        raise ValueError(f"There is no file with one output for the label {', '.join(labels)}.")
    settings, weights = join(parts)
    config = build_config(settings, weights)
    weights = {numbered(name, config): tensor for name, tensor in weights.items()}
    random = check(config, weights, parts)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = JCAModel(config)
    model.load_state_dict(weights, strict=False)
    model.save_pretrained(output)
    build_processor(config).save_pretrained(output)
    report = [f"{part.path.name} became {part.family.name}. {' '.join(part.notes)}".strip() for part in parts]
    report += [f"The {part} is configured and has random weights: no file holds it." for part in random]
    (output / "README.md").write_text(model_card(config, parts, report), encoding="utf-8")
    return report


CARD = """---
{metadata}
---
# A converted model

Made by `scripts/convert.py` of jca {version} from checkpoints of the authors of joint cross-attention
([arXiv 2203.14779](https://arxiv.org/abs/2203.14779)) or of the encoders that they use. Outputs: {labels}.

| file | SHA-256 | tensors |
|---|---|---|
{files}

{report}

```python
import jca
from transformers import pipeline

rows = pipeline("audio-visual-emotion", model=folder)("interview.mp4")
```

The authors' repositories and weights carry no licence, and the two-stream encoders are for research only. Ask before you use
what is in here for anything else, or pass it on.
"""


def model_card(config: JCAConfig, parts: list[Part], report: list[str]) -> str:
    """The card of a converted model: of which files it is, and what was taken and left out."""
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="video-classification",
        tags=["audio-visual", "emotion-recognition", "valence-arousal", config.fusion.replace("_", "-")],
    )
    rows = [
        f"| {part.path.name} | `{hashlib.sha256(part.path.read_bytes()).hexdigest()}` | {len(part.theirs)} |"
        for part in parts
    ]
    return CARD.format(
        metadata=metadata.to_yaml(),
        version=__version__,
        labels=", ".join(config.id2label.values()),
        files="\n".join(rows),
        report="\n".join(f"- {line}" for line in report),
    )
