"""Faster inference behind the same model: encoders in bfloat16, or as graphs that ONNX Runtime and OpenVINO run.

[`optimize`] makes a copy of a model for inference with PyTorch alone. [`export`] writes a folder of ONNX graphs, in float32
or int8, for a backend, which `AutoModel.from_pretrained`, the pipeline and the scripts open like that of any model. What is
fast must compute what plain float32 computes: features of one clip are compared whenever a fast model is made or opened,
see [`TOLERANCE`].

```python
pipe = pipeline("audio-visual-emotion", model="exported")
pipe = pipeline("audio-visual-emotion", model="exported", dtype="bfloat16", model_kwargs={"backend": "openvino"})
```
"""

import copy
import hashlib
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.export import Dim
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.pipelines import pipeline
from transformers.utils import cached_file

from configuration_jca import JCAConfig
from encoders_jca import encode, feature_size, sees_pictures
from modeling_jca import JCAModel
from pipeline_jca import AudioVisualEmotionPipeline
from processing_jca import JCAProcessor, JCAVideoProcessor


# How far the features of a clip may be from those of plain float32, |fast - plain| / |plain|: above what was seen of
# rounding (2e-6, 0.02, 0.17) and far below what a kernel that computes something else gives.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "int8": 0.3}
DTYPES = {"onnx": ("float32",), "openvino": ("float32", "bfloat16")}  # of each backend
WEIGHTS, CHECK = "fusion.safetensors", "check.safetensors"
MAX_CLIPS = 64  # to calibrate with
AT_ONCE = 2**20  # numbers that go through an encoder together on a CPU: beyond the caches every layer waits for memory
# clips `(clips, ...)` to features `(clips, size)` in float32; where an encoder sees frame by frame, pictures `(pictures,
# channels, height, width)` to those of each
Run = Callable[[torch.Tensor], torch.Tensor]


# The model -----------------------------------------------------------------------------------------------------------


class ClipEncoder(nn.Module):
    """An encoder as a function of clips alone: `(clips, ...)` to features `(clips, size)` in float32. Pictures `(pictures,
    channels, height, width)` are each a clip of its own."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        clips = clips.to(next(self.encoder.parameters()).dtype)
        if clips.ndim == 4:  # pictures, each a clip of its own
            clips = clips.unsqueeze(1)
        return encode(self.encoder, clips.unsqueeze(1)).squeeze(1).float()


class FastEncoder(nn.Module):
    """
    What stands for an encoder in a model.

    Args:
        run: a [`ClipEncoder`] or what calls a graph.
        size: width of a feature.
        reads: name of the model's argument for clips.
        origin: what the features depend on where `run` holds no weights, for the names of kept features.
        tracks: whether `run` holds an encoder that reads tracks.
        pictures: whether it takes pictures, not clips.
    """

    def __init__(
        self, run: Run, size: int | None, reads: str, origin: bytes = b"", tracks: bool = False, pictures: bool = False
    ):
        super().__init__()
        self.run, self.main_input_name = run, reads
        self.input_modalities = ("image",) if pictures else ("video", "audio")  # see `sees_pictures`
        self.config = PreTrainedConfig(hidden_size=size, tracks=tracks)
        self.register_buffer("origin", torch.frombuffer(bytearray(hashlib.sha256(origin).digest()), dtype=torch.uint8))

    def forward(self, **inputs: torch.Tensor) -> BaseModelOutputWithPooling:
        (clips,) = inputs.values()
        at_once = max(1, AT_ONCE // clips[0].numel()) if clips.device.type == "cpu" else len(clips)
        parts = clips.tensor_split(-(-len(clips) // at_once))  # of one size, since a small one is slower for each clip
        features = torch.cat([self.run(part) for part in parts])
        return BaseModelOutputWithPooling(pooler_output=features.to(clips.device))

    def forward_track(self, frames: torch.Tensor, clip_length: int, hop: int) -> torch.Tensor:
        """See [`R2Plus1DModel.forward_track`]."""
        encoder = self.run.encoder  # type: ignore[attr-defined]  # of a ClipEncoder: graphs know no tracks
        return encoder.forward_track(frames.to(next(encoder.parameters()).dtype), clip_length, hop).float()


class FastJCAModel(JCAModel):
    """A [`JCAModel`] whose encoders are [`FastEncoder`]s: for inference, not to be trained or saved."""

    _auto_class = None

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs and of the fusion, whatever the encoders compute in."""
        return torch.float32

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Raises a ValueError that says what to save instead."""
        raise ValueError(
            "A model that was made for inference is not saved: save the model that it was made of, or copy its exported "
            "folder."
        )

    @classmethod
    def assemble(
        cls, config: JCAConfig, encoders: Mapping[str, FastEncoder], weights: Mapping[str, torch.Tensor]
    ) -> "FastJCAModel":
        """A model of encoders by modality and the weights of all else."""
        with torch.device("meta"):  # its encoders are not needed
            model = cls(config)
        for modality in encoders:
            setattr(model, f"{modality}_encoder", nn.Identity())
        model.load_state_dict(weights, assign=True)
        for modality, encoder in encoders.items():
            setattr(model, f"{modality}_encoder", encoder)
        return model.requires_grad_(False).eval()


def plain_copy(model: JCAModel) -> JCAModel:
    """A copy in float32 that may be changed."""
    if isinstance(model, FastJCAModel):
        raise ValueError("This model was made for inference already: give the model that it was made of.")
    check_kind(model.config, "The model")
    return copy.deepcopy(model).float().requires_grad_(False).eval()


def check_kind(config: PreTrainedConfig, name: str) -> None:
    """Raises ValueError if a model is none of ours; classes of remote code have the same `model_type`."""
    if config.model_type not in (JCAConfig.model_type, ExportedJCAConfig.model_type):
        raise ValueError(
            f"{name} is a {config.model_type!r}, which is an encoder at most: give a JCAModel, such as of "
            "`JCAModel.from_encoders`."
        )


def _load_tensors(path: str) -> dict[str, torch.Tensor]:
    """
    The tensors of a safetensors file.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): export the model anew.") from error


def fusion_weights(model: JCAModel) -> dict[str, torch.Tensor]:
    """All weights but those of the encoders."""
    return {name: tensor for name, tensor in model.state_dict().items() if "_encoder." not in name}


def example_clips(processor: JCAProcessor, modality: str) -> torch.Tensor:
    """One clip of noise as the encoder of a modality reads it, `(1, ...)`, always the same."""
    rng = np.random.default_rng(0)
    if modality == "video":
        size = processor.video_processor.size
        crops = rng.integers(0, 256, (1, processor.clip_length, size, size, 3), dtype=np.uint8)
        return processor.video_processor(crops)["pixel_values"]
    return processor.audio_inputs(rng.normal(0, 0.1, (1, processor.clip_samples)).astype(np.float32))


def as_read(encoder: nn.Module, clips: torch.Tensor) -> torch.Tensor:
    """Clips `(clips, ...)` as an encoder's [`Run`] takes them: their pictures one by one if it sees frame by frame."""
    return clips.flatten(0, 1) if clips.ndim == 5 and sees_pictures(encoder) else clips


def check_features(features: torch.Tensor, expected: torch.Tensor, precision: str, what: str) -> float:
    """
    The difference of features from those of plain float32, relative to the latter.

    Raises:
        ValueError: if it is above the precision's [`TOLERANCE`].
    """
    difference = float((features - expected).norm() / expected.norm().clamp(min=1e-12))
    if not difference <= TOLERANCE[precision]:  # NaN too
        raise ValueError(
            f"{what} gives features that differ by {difference:.2g} from those of plain float32, and at most "
            f"{TOLERANCE[precision]} is rounding in {precision}: it does not compute this encoder here. Choose another "
            "dtype or backend; files that were changed must be exported anew."
        )
    return difference


# PyTorch -------------------------------------------------------------------------------------------------------------


def fold_batch_norm(encoder: ClipEncoder, clips: torch.Tensor) -> torch.Tensor:
    """Put every batch normalisation that reads a convolution's output into that convolution, in place: which these are is
    seen on `clips`, whose features it returns."""
    made: list[Any] = [None, None]  # the last convolution and its output
    convolutions: dict[nn.Module, nn.Module] = {}  # by the normalisation that reads them

    def see(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            made[:] = module, output
        elif inputs[0] is made[1]:
            convolutions[module] = made[0]

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.modules.batchnorm._BatchNorm)
    hooks = [module.register_forward_hook(see) for module in encoder.modules() if isinstance(module, kinds)]
    features = encoder(clips)
    for hook in hooks:
        hook.remove()
    for norm, convolution in convolutions.items():
        fused = fuse_conv_bn_eval(convolution, norm)
        convolution.weight, convolution.bias = fused.weight, fused.bias
        for parent in encoder.modules():
            for name, child in parent.named_children():
                if child is norm:
                    setattr(parent, name, nn.Identity())
    return features


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16; others do so in float32, slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@torch.no_grad()
def optimize(model: JCAModel, processor: JCAProcessor, dtype: torch.dtype | str = "auto") -> FastJCAModel:
    """
    A copy of a model for inference with PyTorch, on the model's device; the model stays as it is.

    Batch normalisation is folded into the convolutions, whose memory is channels-last in bfloat16. The fusion stays in
    float32.

    ```python
    pipe.model = optimize(pipe.model, pipe.processor)
    ```

    Args:
        model, processor: that belong together.
        dtype (`torch.dtype` or `str`, defaults to `"auto"`): of the encoders, `"bfloat16"` or `"float32"`; `"auto"` is
            bfloat16 where the device computes in it.

    Raises:
        ValueError: if the features of a clip are not those of plain float32, or if the model is such a copy.
    """
    if dtype == "auto":
        dtype = torch.bfloat16 if has_bfloat16(model.device) else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in ("float32", "bfloat16"):
        raise ValueError(f'dtype={dtype!r} is not known here: choose "auto", "float32" or "bfloat16".')
    model, encoders = plain_copy(model), {}
    for modality in model.config.modalities:
        encoder = getattr(model, f"{modality}_encoder")
        clips = as_read(encoder, example_clips(processor, modality).to(model.device))
        run = ClipEncoder(encoder).eval()
        expected = fold_batch_norm(run, clips)
        if name == "bfloat16":
            run.bfloat16()
            for parameter in run.parameters():
                if parameter.ndim > 3:
                    layout = torch.channels_last if parameter.ndim == 4 else torch.channels_last_3d
                    parameter.data = parameter.contiguous(memory_format=layout)
        check_features(run(clips), expected, name, f"PyTorch {torch.__version__}")
        size, tracks = feature_size(encoder.config), getattr(encoder.config, "tracks", False)
        pictures = clips.ndim == 4
        encoders[modality] = FastEncoder(run, size, encoder.main_input_name, tracks=tracks, pictures=pictures)
    return FastJCAModel.assemble(model.config, encoders, fusion_weights(model))


# Graphs --------------------------------------------------------------------------------------------------------------


@strict
class ExportedJCAConfig(JCAConfig):
    r"""
    Configuration of [`ExportedJCAModel`]: that of the [`JCAModel`] and

    Args:
        precision (`str`, defaults to `"float32"`): `"float32"` or `"int8"`, of the encoders' graphs.
        backend (`str`, defaults to `"onnx"`): what runs them, `"onnx"`: ONNX Runtime, or `"openvino"`: OpenVINO. The files
            are the same.
    """

    model_type = "jca_exported"
    _auto_class = None  # its code does not travel with the files

    precision: str = "float32"
    backend: str = "onnx"

    def validate_backend(self) -> None:
        """Raises ValueError for a backend that is not known."""
        if self.backend not in DTYPES:
            raise ValueError(f"backend={self.backend!r} is not known. Choose one of {', '.join(DTYPES)}.")

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in super().to_dict().items() if k not in ("auto_map", "custom_pipelines")}


class ExportedJCAModel(FastJCAModel):
    """A model of a folder that [`export`] wrote: the encoders are graphs on the CPU, the fusion is PyTorch's."""

    config: ExportedJCAConfig

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        config: ExportedJCAConfig | None = None,
        dtype: torch.dtype | str | None = None,
        **kwargs: Any,
    ) -> "ExportedJCAModel":
        """
        Open a folder or Hub repository. As many threads as `torch.get_num_threads()` says run the graphs.

        Args:
            backend (`str`, *optional*): in place of the one that the folder was exported for, see [`ExportedJCAConfig`].
            dtype (`torch.dtype` or `str`, *optional*): `"bfloat16"` lets OpenVINO compute what is not int8 in it, where the
                processor has it. Else float32.

        Raises:
            ImportError: if the backend is not installed.
            ValueError: if the backend is not known, has no such dtype or can not open a file, or if the features of the clip
                that was exported with the graphs are not those of plain float32.
        """
        source = str(pretrained_model_name_or_path)
        if config is None:
            config, kwargs = cls.config_class.from_pretrained(source, return_unused_kwargs=True, **kwargs)
        config.validate_backend()  # `AutoConfig` sets what it is given without
        places = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        hub = {name: kwargs[name] for name in places if name in kwargs}
        name = "float32" if dtype in (None, "auto") else str(dtype).removeprefix("torch.")
        if name not in DTYPES[config.backend]:
            raise ValueError(
                f'backend={config.backend!r} has no dtype={name!r}: choose "float32", or "bfloat16" with backend="openvino".'
            )
        check = _load_tensors(cached_file(source, CHECK, **hub))
        encoders = {}
        for modality in config.modalities:
            path = Path(cached_file(source, f"{modality}_encoder.onnx", **hub))
            try:
                run, reads = OPEN[config.backend](path, name)
            except ImportError:
                raise
            except Exception as error:  # their own classes
                raise ValueError(f"backend={config.backend!r} can not open {path}: {error}") from error
            precision, clips = "int8" if config.precision == "int8" else name, check[f"{modality}_clips"]
            what = f"{path.name} with backend={config.backend!r}"
            check_features(run(clips), check[f"{modality}_features"], precision, what)
            size = feature_size(getattr(config, f"{modality}_config"))
            origin = path.read_bytes() + f"{config.backend} {name}".encode()
            encoders[modality] = FastEncoder(run, size, reads, origin, pictures=clips.ndim == 4)
        weights = _load_tensors(cached_file(source, WEIGHTS, **hub))
        try:
            return cls.assemble(config, encoders, weights)
        except RuntimeError as error:  # of names or shapes, in lines
            reason = " ".join(str(error).split())
            raise ValueError(f"{WEIGHTS} of {source} is of another model ({reason}): export the model anew.") from error


def open_onnx(path: Path, dtype: str) -> tuple[Run, str]:
    """What runs a graph with ONNX Runtime, and the name of its input."""
    onnxruntime = import_extra("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda clips: torch.from_numpy(session.run(None, {name: clips.float().cpu().numpy()})[0]), name


def open_openvino(path: Path, dtype: str) -> tuple[Run, str]:
    """The same with OpenVINO."""
    # tells Google Analytics of every import of OpenVINO, which has a stub for where it is not installed
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        "PERFORMANCE_HINT": "LATENCY",
    }
    graph = import_extra("openvino", "openvino").Core().compile_model(path, "CPU", settings)
    name = graph.input(0).get_any_name()
    return lambda clips: torch.from_numpy(graph({name: clips.float().cpu().numpy()})[0]), name


OPEN = {"onnx": open_onnx, "openvino": open_openvino}


def import_extra(package: str, extra: str) -> ModuleType:
    """A package, or what to install."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"Graphs need {package}: pip install 'jca[{extra}]'") from error


class _Fusion(nn.Module):
    """Features and masks of a model's modalities, in this order, to outputs."""

    def __init__(self, model: JCAModel, names: Sequence[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


@torch.no_grad()
def export(
    model: JCAModel,
    processor: JCAProcessor,
    folder: str | Path,
    calibration: Iterable[Any] | None = None,
    backend: str = "onnx",
) -> dict[str, float]:
    """
    Write a model as ONNX graphs, and what else [`ExportedJCAModel`] and the pipeline need to open the folder.

    `video_encoder.onnx` and `audio_encoder.onnx` take clips `(clips, ...)` as the processor makes them to features `(clips,
    size)`; a video encoder that sees frame by frame takes pictures `(pictures, channels, height, width)`, and the mean of
    their features is the clip's. `fusion.onnx` takes features `(windows, clips, size)` and masks `(windows, clips)` to
    outputs `(windows, clips, outputs)`. The numbers of clips and windows are free, but for the clips of a window where the
    fusion's weights are made for their number.

    Args:
        model, processor: that belong together.
        folder: to write, made if need be.
        calibration (`Iterable`, *optional*): media as the pipeline takes it. With it the convolutions of the encoders are in
            int8, each tensor in the range that it has for up to 64 of these clips; encoders with attention stay in float32.
        backend (`str`, defaults to `"onnx"`): what runs the graphs where nothing else is asked for, see
            [`ExportedJCAConfig`].

    Returns:
        For each modality how far the backend's features are from PyTorch's, see [`TOLERANCE`].

    Raises:
        ImportError: if ONNX, ONNX Runtime or the backend are not installed.
        ValueError: if that is too far, if the media shows nothing of a modality, or if the model was made for inference
            already or reads tracks.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(package, "onnx")
    check_kind(model.config, "The model")
    if "video" in model.config.modalities and getattr(model.config.video_config, "tracks", False):
        raise ValueError(
            "The video encoder of this model was trained for tracks (tracks=True), and a graph would read each clip alone: "
            "run it with PyTorch, see optimize."
        )
    folder = Path(folder)
    if (folder / "config.json").exists() and AutoConfig.from_pretrained(
        folder
    ).model_type != ExportedJCAConfig.model_type:
        raise ValueError(f"{folder} holds a model that is not exported, which would be lost: choose another folder.")
    model = plain_copy(model).cpu()
    settings = {k: v for k, v in model.config.to_dict().items() if k not in ("model_type", "architectures")}
    precision = "float32" if calibration is None else "int8"
    config = ExportedJCAConfig(**settings, precision=precision, backend=backend)
    if calibration is None:
        clips = {modality: example_clips(processor, modality) for modality in config.modalities}
    else:
        clips = calibration_clips(processor, calibration, config.modalities)
    folder.mkdir(parents=True, exist_ok=True)
    check, differences = {}, {}
    for modality in config.modalities:
        path, encoder = folder / f"{modality}_encoder.onnx", getattr(model, f"{modality}_encoder")
        run, name = ClipEncoder(encoder), input_name(processor, modality)
        first = as_read(encoder, clips[modality][:1]).contiguous()
        features = fold_batch_norm(run, first)
        write_graph(run, (torch.cat([first, first]),), path, [name], "features", ({0: Dim.DYNAMIC},))
        if precision == "int8":
            quantize(path, name, as_read(encoder, clips[modality]))
        fast, _ = OPEN[backend](path, "float32")
        differences[modality] = check_features(fast(first), features, precision, f"{path.name} with {backend=}")
        check |= {f"{modality}_clips": first, f"{modality}_features": features}
    names = [f"{modality}_{kind}" for kind in ("features", "mask") for modality in config.modalities]
    shape, sizes = (2, config.num_clips), [getattr(model, f"{modality}_size") for modality in config.modalities]
    inputs = [torch.ones(*shape, size) for size in sizes] + [torch.ones(shape) for _ in sizes]
    free = tuple({0: Dim.DYNAMIC, 1: Dim.AUTO} for _ in inputs)
    write_graph(_Fusion(model, names), tuple(inputs), folder / "fusion.onnx", names, "logits", (free,))
    save_file({name: tensor.contiguous() for name, tensor in fusion_weights(model).items()}, folder / WEIGHTS)
    save_file(check, folder / CHECK)
    processor.save_pretrained(folder)
    config.save_pretrained(folder)  # last: without it nothing opens the folder
    return differences


def input_name(processor: JCAProcessor, modality: str) -> str:
    """The model's argument for clips of a modality."""
    return "pixel_values" if modality == "video" else processor.audio_input_name


def calibration_clips(
    processor: JCAProcessor, calibration: Iterable[Any], modalities: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Up to [`MAX_CLIPS`] clips of media for each modality, `(clips, ...)`, drawn from all that show it."""
    found: dict[str, list[torch.Tensor]] = {modality: [] for modality in modalities}
    seen, rng = dict.fromkeys(modalities, 0), np.random.default_rng(0)
    for source in calibration:
        for window in processor.windows(source, hop=processor.span):
            inputs = processor.inputs(window)
            for modality in modalities:
                clips = inputs[input_name(processor, modality)]
                for clip in clips[inputs[f"{modality}_mask"]]:
                    seen[modality] += 1  # each of those seen so far is as likely to be kept (Vitter's algorithm R)
                    if len(found[modality]) < MAX_CLIPS:
                        found[modality].append(clip.clone())
                    elif (place := rng.integers(seen[modality])) < MAX_CLIPS:
                        found[modality][place] = clip.clone()
    if missing := [modality for modality, kept in found.items() if not kept]:
        raise ValueError(f"Nothing that was given to calibrate with holds {' or '.join(missing)}: give videos that do.")
    return {modality: torch.stack(kept) for modality, kept in found.items()}


def write_graph(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, names: Sequence[str], output: str, free: tuple
) -> None:
    """Write a module as an ONNX file, weights included. `free` says which dimensions of each input have no fixed size."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about itself
        logger.setLevel(logging.ERROR)  # it warns that torchvision is not installed
        try:
            torch.onnx.export(
                module.eval(),
                inputs,
                path,
                input_names=names,
                output_names=[output],
                dynamic_shapes=free,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        finally:
            logger.setLevel(level)


def quantize(path: Path, name: str, clips: torch.Tensor) -> None:
    """
    Rewrite the graph of an encoder with its convolutions, and what stands between them, in int8: weights by output channel,
    signed and symmetric; what a layer reads as a whole, unsigned, between the least and the greatest value that it has for
    `clips`. An encoder with attention is left as it is.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quant_pre_process, quantize_static

    class Clips(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(clips.split(1))

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {name: row.numpy()}

    if any(node.op_type == "Softmax" for node in onnx.load(path).graph.node):
        return
    quant_pre_process(path, path, skip_symbolic_shape=True)
    quantize_static(
        path,
        path,
        Clips(),
        op_types_to_quantize=["Conv", "Add", "MaxPool", "Concat"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # quantised is what a layer reads, behind its ReLU: what a convolution and a sum give goes on to one
        extra_options={"WeightSymmetric": True, "OpTypesToExcludeOutputQuantization": ["Conv", "Add"]},
    )


# Pipelines -----------------------------------------------------------------------------------------------------------


def load_pipeline(
    source: str | Path, backend: str | None = None, device: torch.device | str | int | None = None
) -> AudioVisualEmotionPipeline:
    """
    `pipeline("audio-visual-emotion", model=source)`, run by a backend.

    Args:
        source: folder or Hub repository of a model.
        backend (`str`, *optional*): `"torch"`: [`optimize`]; `"onnx"` or `"openvino"`: the graphs of a folder that
            [`export`] wrote. PyTorch and OpenVINO compute in bfloat16 where the machine has it. Left out, the model as it
            was saved.
        device: for PyTorch; graphs run on the CPU.

    Raises:
        ImportError, ValueError: if the backend is not installed, is not known, or computes something else here, if graphs
            are asked for of a model that is not exported, or if the model is no JCAModel.
        OSError: if there is no such folder or repository, or it holds no model.
    """
    if backend not in (None, "torch", *DTYPES):
        raise ValueError(f"backend={backend!r} is not known. Choose one of torch, {', '.join(DTYPES)}.")
    graphs = {} if backend in (None, "torch") else {"backend": backend}
    if backend == "openvino" and has_bfloat16(torch.device("cpu")):
        graphs["dtype"] = torch.bfloat16
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:  # the latter of what can not be the name of a repository
        if Path(source).is_dir():
            raise
        raise OSError(
            f"There is no folder {source}, and no model could be read from the Hub by this name: {error}"
        ) from error
    check_kind(config, f"The model in {source}")
    if graphs and config.model_type != ExportedJCAConfig.model_type:
        raise ValueError(f"{source} holds no graphs for {backend=}: scripts/export.py makes a folder of them.")
    processor, model = AutoProcessor.from_pretrained(source), AutoModel.from_pretrained(source, **graphs)
    if backend == "torch":
        model = optimize(model if device is None else model.to(device), processor)
    return pipeline("audio-visual-emotion", model=model, processor=processor, device=device)


AutoConfig.register(ExportedJCAConfig.model_type, ExportedJCAConfig, exist_ok=True)
AutoModel.register(ExportedJCAConfig, ExportedJCAModel, exist_ok=True)
AutoProcessor.register(ExportedJCAConfig, JCAProcessor, exist_ok=True)
# the pipeline gives its `model_kwargs` to the processor as well, and Transformers has backends of video processors
AutoVideoProcessor.register(JCAConfig, video_processor_classes=dict.fromkeys(DTYPES, JCAVideoProcessor), exist_ok=True)

__all__ = ["ExportedJCAConfig", "ExportedJCAModel", "FastJCAModel", "export", "load_pipeline", "optimize"]
