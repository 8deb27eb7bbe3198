"""What a model is: `JCAConfig` and the configurations of the encoders that Transformers does not have."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


FUSIONS = ("concat", "cross_attention", "joint_cross_attention", "dense_co_attention", "transformer")
MODALITIES = ("video", "audio")
TEMPORAL_LAYERS = ("lstm", "tcn")
RESNET18 = {
    "embedding_size": 64,
    "hidden_sizes": [64, 128, 256, 512],
    "depths": [2, 2, 2, 2],
    "layer_type": "basic",
}
RESNET18_ONE_CHANNEL = {**RESNET18, "num_channels": 1}


@strict
class R2Plus1DConfig(PreTrainedConfig):
    r"""
    Configuration of an R(2+1)D video encoder (Tran et al., CVPR 2018, arXiv 1711.11248).

    The defaults are R(2+1)D-18, 31.3 M parameters: the visual encoder whose Aff-Wild2 weights the authors of joint
    cross-attention point to. Smaller `hidden_sizes` and `depths` give networks that train on a CPU.

    Args:
        num_channels (`int`, defaults to 3): channels of a frame.
        stem_size (`int`, defaults to 45): channels between the spatial and the temporal convolution of the stem.
        hidden_sizes (`list[int]`, defaults to `[64, 128, 256, 512]`): channels of each stage; the last is the width of
            the feature. Every stage but the first halves height, width and time.
        depths (`list[int]`, defaults to `[2, 2, 2, 2]`): residual blocks of each stage.
        spatial_size (`int`, *optional*): side of the map that is the feature, flattened as (channels, rows, columns). By
            default it is pooled to one vector; 7 gives the 512 x 7 x 7 = 25,088 numbers of a clip at 112 pixels that the
            authors' dense co-attention reads.
        tracks (`bool`, defaults to `False`): run over all clips of a window as one track and not over each alone: a clip
            sees its neighbours, and clips that overlap share most of the work, which is then a third at hop 8. Weights are
            trained for one of the two.
    """

    model_type = "r2plus1d"

    num_channels: int = 3
    stem_size: int = 45
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    spatial_size: int | None = None
    tracks: bool = False

    @property
    def hidden_size(self) -> int:
        """Width of the feature of a clip."""
        return self.hidden_sizes[-1] * (self.spatial_size or 1) ** 2

    def validate_stages(self) -> None:
        """Raises ValueError for stages that do not fit each other."""
        if len(self.hidden_sizes) != len(self.depths) or not self.hidden_sizes:
            raise ValueError(
                f"hidden_sizes={list(self.hidden_sizes)} and depths={list(self.depths)} must name the same stages, at "
                "least one: give one width and one number of blocks for each."
            )
        if self.spatial_size is not None and self.spatial_size < 1:
            raise ValueError(f"spatial_size={self.spatial_size} must be at least 1, or None for one pooled vector.")


@strict
class I3DConfig(PreTrainedConfig):
    r"""
    Configuration of an Inception-I3D video encoder (Carreira and Zisserman, CVPR 2017, arXiv 1705.07750), with or without
    a temporal convolutional network on top (TCN; Bai et al., arXiv 1803.01271).

    The defaults are the I3D of the authors of joint cross-attention, 12.3 M parameters: no layer strides in time, so that
    a clip of 8 frames gives 7 steps. With `tcn_channels=[512, 512, 512, 512]` it is their I3D-TCN, 24.6 M parameters.

    Args:
        num_channels (`int`, defaults to 3): channels of a frame.
        width_multiplier (`float`, defaults to 1.0): factor on the channels of every layer of Inception. A twentieth gives a
            network that trains on a CPU.
        tcn_channels (`list[int]`, *optional*): channels of each level of the TCN, the last the width of the feature.
            Level i dilates by 2^i. Without them the feature is the mean of Inception's steps, 1,024 wide.
        tcn_kernel_size (`int`, defaults to 5): steps that a convolution of the TCN reads.
        tcn_dropout (`float`, defaults to 0.1): dropout after each convolution of the TCN.
        tracks (`bool`, defaults to `False`): see [`R2Plus1DConfig`].
    """

    model_type = "i3d"

    num_channels: int = 3
    width_multiplier: float | int = 1.0
    tcn_channels: list[int] | tuple[int, ...] | None = None
    tcn_kernel_size: int = 5
    tcn_dropout: float | int = 0.1
    tracks: bool = False

    def width(self, channels: int) -> int:
        """Channels here of a layer that has `channels` in Inception."""
        return max(1, round(channels * self.width_multiplier))

    @property
    def hidden_size(self) -> int:
        """Width of the feature of a clip."""
        return self.tcn_channels[-1] if self.tcn_channels else sum(self.width(c) for c in (384, 384, 128, 128))

    def validate_sizes(self) -> None:
        """Raises ValueError for a size that can not be."""
        if self.width_multiplier <= 0:
            raise ValueError(f"width_multiplier={self.width_multiplier} must be above 0.")
        if self.tcn_kernel_size < 1:
            raise ValueError(f"tcn_kernel_size={self.tcn_kernel_size} must be at least 1.")
        if not 0 <= self.tcn_dropout < 1:
            raise ValueError(f"tcn_dropout={self.tcn_dropout} is a probability: give a value in [0, 1).")


@strict
class ResNetGRUConfig(PreTrainedConfig):
    r"""
    Configuration of a video encoder that reads each frame with a ResNet and the frames of a clip with a GRU: the
    "ResNet18-GRU" of the paper's ablation, whose sizes it does not print.

    Args:
        resnet_config (`dict | ResNetConfig`, *optional*): the network of a frame. Defaults to ResNet-18.
        hidden_size (`int`, defaults to 512): width of the GRU and of the feature.
        num_layers (`int`, defaults to 1): layers of the GRU.
    """

    model_type = "resnet_gru"
    sub_configs_defaults = {
        "resnet_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet", init_kwargs=RESNET18)
    }

    resnet_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 512
    num_layers: int = 1

    def validate_sizes(self) -> None:
        """Raises ValueError for a size that can not be."""
        for name in ("hidden_size", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")


OWN_ENCODER_CONFIGS = {config.model_type: config for config in (R2Plus1DConfig, I3DConfig, ResNetGRUConfig)}


# Transformers' defaults drop layers and mask steps at random, for pretraining; layers and masks that are not drawn have no
# gradient, which DDP refuses
WITHOUT_SPEC_AUGMENT = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0}


class _EncoderSpec(SubConfigSpec):
    """Any encoder of Transformers, and ours, which `AutoConfig` knows only where `jca` was imported."""

    def get_config_class(self, model_type: str | None = None) -> type[PreTrainedConfig]:
        return OWN_ENCODER_CONFIGS.get(model_type or "") or super().get_config_class(model_type)

    def create_subconfig(self, key: str, subconfig: Any = None, **kwargs: Any) -> Any:
        if isinstance(subconfig, dict):
            config_class = self.get_config_class(subconfig.get("model_type", self.model_type))
            off = {name: value for name, value in WITHOUT_SPEC_AUGMENT.items() if hasattr(config_class, name)}
            subconfig = {**off, **subconfig}
        return super().create_subconfig(key, subconfig, **kwargs)


@strict
class JCAConfig(PreTrainedConfig):
    r"""
    Configuration of [`JCAModel`]: two encoders, a fusion and a regressor for valence and arousal.

    Without arguments it is the fusion of joint cross-attention (arXiv 2203.14779) in the sizes of the authors' code, on
    the encoders whose trained weights they point to: R(2+1)D-18 for the face, ResNet-18 on one channel for the log-mel
    spectrogram.

    Args:
        video_config (`dict | PreTrainedConfig`, *optional*): configuration of the visual encoder, ours or any video or
            image encoder of Transformers, built by `AutoModel.from_config`. Defaults to `R2Plus1DConfig()`.
        audio_config (`dict | PreTrainedConfig`, *optional*): the same for the audio encoder, which may also be an image
            encoder with one channel. Defaults to a `ResNetConfig` that is ResNet-18 with one input channel. A dict that
            does not name them has no SpecAugment and no layerdrop; a configuration object is taken as it stands.
        modalities (`list[str]`, defaults to `["video", "audio"]`): which of the two the model has. One alone is a
            unimodal model: its encoder and the regressor, with `fusion="concat"`.
        num_clips (`int`, defaults to 16): clips in a window, L in the paper. The weights of `joint_cross_attention`
            and `dense_co_attention` mix the clips of a window and are made for this length; the others take any.
        projection_size (`int`, *optional*, defaults to 128): width to which each modality's feature is projected before
            the fusion. The paper has no such layer, the authors' code has; `None` leaves it out.
        fusion (`str`, defaults to `"joint_cross_attention"`): `"concat"`, `"cross_attention"` (FG 2021),
            `"joint_cross_attention"` (the paper), `"dense_co_attention"` (what the authors' second repository trains) or
            `"transformer"` (a baseline of today).
        num_recursions (`int`, defaults to 1): times the fusion is applied to its own output, with the same weights
            (recursive joint attention, ICASSP 2023; 3 is the best of RJCMA's table).
        gated (`bool`, defaults to `False`): a learnt gate weighs attended against unattended features.
        temporal (`list[str]`, defaults to `[]`): where a layer over the clips of a window stands: `"video"` and `"audio"`
            before the fusion, `"joint"` after it.
        temporal_layer (`str`, defaults to `"lstm"`): which layer, `"lstm"`: bidirectional LSTMs (recursive joint attention,
            ICASSP 2023), or `"tcn"`: causal temporal convolutional networks (Bai et al., arXiv 1803.01271), of which RJCMA
            (CVPRW 2024) has one for each modality. RJCMA's read single frames, 300 in a window, as wide as the encoder
            makes them, and batch normalisation follows; ours read clips, as wide as the projection makes them, without it.
        normalize_features (`bool`, defaults to `False`): L2-normalise the encoders' features (authors' second repository).
        scrambled_positions (`bool`, defaults to `False`): view a flattened visual map as the authors' code does, which
            mixes channels and places; for weights trained so.
        head_input (`str`, defaults to `"attended"`): what the regressors read, `"attended"`: both attended features (the
            paper), or `"raw_video"`: the encoder's visual feature beside the attended one, for checkpoints of the
            authors' code, which computes the attended audio and does not use it.
        num_attention_heads (`int`, defaults to 4): of `transformer`.
        attention_size (`int`, defaults to 32): k, rows of the attention maps H of joint cross-attention.
        temperature (`float`, defaults to 1.0): T of the softmax of `cross_attention`. The paper prints no value.
        regressor_size (`int`, defaults to 128): hidden width of the regressor; every label has its own.
        regressor_act (`str`, defaults to `"relu"`): its activation. The authors' code has none: `"linear"`.
        dropout (`float`, defaults to 0.6): dropout of the regressor (authors' code).
        id2label (`dict[int, str]`, defaults to `{0: "valence", 1: "arousal"}`): the outputs, in order.
    """

    model_type = "jca"
    sub_configs_defaults = {
        "video_config": _EncoderSpec(config_class=AutoConfig, model_type="r2plus1d"),
        "audio_config": _EncoderSpec(config_class=AutoConfig, model_type="resnet", init_kwargs=RESNET18_ONE_CHANNEL),
    }

    video_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    modalities: list[str] | tuple[str, ...] = MODALITIES
    num_clips: int = 16
    projection_size: int | None = 128
    fusion: str = "joint_cross_attention"
    num_recursions: int = 1
    gated: bool = False
    temporal: list[str] | tuple[str, ...] = ()
    temporal_layer: str = "lstm"
    normalize_features: bool = False
    scrambled_positions: bool = False
    head_input: Literal["attended", "raw_video"] = "attended"
    num_attention_heads: int = 4
    attention_size: int = 32
    temperature: float | int = 1.0
    regressor_size: int = 128
    regressor_act: str = "relu"
    dropout: float | int = 0.6
    problem_type: Literal["regression"] | None = "regression"

    # Every saved config.json carries both, whichever class saved it: `register_for_auto_class` records only the class
    # that was saved, and only `Pipeline.save_pretrained` records the task.
    _auto_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_jca.JCAConfig",
        "AutoModel": "modeling_jca.JCAModel",
        "AutoProcessor": "processing_jca.JCAProcessor",
    }
    _custom_pipelines: ClassVar[dict[str, dict[str, Any]]] = {
        "audio-visual-emotion": {
            "impl": "pipeline_jca.AudioVisualEmotionPipeline",
            "pt": ["AutoModel"],
            "type": "multimodal",
        }
    }

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is None and kwargs.get("num_labels") is None:
            self.id2label = {0: "valence", 1: "arousal"}
            self.label2id = {"valence": 0, "arousal": 1}
        # `pipeline()` asks for `trust_remote_code=True` for a task listed in `config.custom_pipelines` even where the
        # installed package has registered that task, so only the copy loaded as remote code exposes the attribute.
        kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)
        if __name__.startswith("transformers_modules."):
            self.custom_pipelines = {task: dict(spec) for task, spec in self._custom_pipelines.items()}

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output["auto_map"] = {**self._auto_map, **(output.get("auto_map") or {})}
        output["custom_pipelines"] = {task: dict(spec) for task, spec in self._custom_pipelines.items()}
        return output

    def validate_fusion(self) -> None:
        """Raises ValueError for modalities, a fusion or layers over time that are not known or do not fit each other."""
        modalities = list(self.modalities)
        if not modalities or len(set(modalities)) != len(modalities) or set(modalities) - set(MODALITIES):
            raise ValueError(f"modalities={modalities} must be one or both of {list(MODALITIES)}.")
        if self.fusion not in FUSIONS:
            raise ValueError(f"fusion={self.fusion!r} is not known. Choose one of {', '.join(FUSIONS)}.")
        if self.fusion != "concat" and len(modalities) < 2:
            raise ValueError(
                f"fusion={self.fusion!r} needs video and audio, and modalities={modalities}. A unimodal model takes "
                'fusion="concat".'
            )
        if unknown := set(self.temporal) - {*modalities, "joint"}:
            raise ValueError(f"temporal names {sorted(unknown)}: choose among {[*modalities, 'joint']}.")
        if self.temporal_layer not in TEMPORAL_LAYERS:
            raise ValueError(
                f"temporal_layer={self.temporal_layer!r} is not known. Choose one of {', '.join(TEMPORAL_LAYERS)}."
            )
        if self.head_input == "raw_video" and len(modalities) < 2:
            raise ValueError(f'head_input="raw_video" needs video and audio, and modalities={modalities}.')

    def validate_sizes(self) -> None:
        """Raises ValueError for a size that can not be."""
        for name in (
            "num_clips",
            "attention_size",
            "regressor_size",
            "projection_size",
            "num_recursions",
            "num_attention_heads",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} divides the correlation and must be above 0.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is a probability: give a value in [0, 1).")


JCAConfig.register_for_auto_class()  # `save_pretrained` copies this file next to the weights

__all__ = ["FUSIONS", "MODALITIES", "I3DConfig", "JCAConfig", "R2Plus1DConfig", "ResNetGRUConfig"]
