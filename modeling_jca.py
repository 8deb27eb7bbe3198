"""What a model computes: encoders, fusion, regressors and loss. `JCAModel` is the one public model.

Shapes: `batch` windows of `clips` clips; a clip is `frames` face crops and the log-mel spectrogram of the same span.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput, can_return_tuple


try:  # copied next to the weights: part of a `transformers_modules.*` package
    from .configuration_jca import WITHOUT_SPEC_AUGMENT, JCAConfig
    from .encoders_jca import build_encoder, encode_present, encode_track, feature_size, reads_tracks, trim_encoder
    from .fusions_jca import FUSION_CLASSES, TEMPORAL_CLASSES, GatedResidual, SpatialAttention, init_fusion_weights
except ImportError:  # installed or on sys.path: a top-level module
    from configuration_jca import WITHOUT_SPEC_AUGMENT, JCAConfig
    from encoders_jca import build_encoder, encode_present, encode_track, feature_size, reads_tracks, trim_encoder
    from fusions_jca import FUSION_CLASSES, TEMPORAL_CLASSES, GatedResidual, SpatialAttention, init_fusion_weights

if TYPE_CHECKING:  # never run: `save_pretrained` copies every file that a line like this one names
    from .pipeline_jca import AudioVisualEmotionPipeline  # noqa: F401
    from .processing_jca import JCAProcessor  # noqa: F401


IGNORED_LABEL = -5.0  # "not annotated" in Aff-Wild2's files


# Loss ----------------------------------------------------------------------------------------------------------------


def _global_sum(sums: torch.Tensor) -> torch.Tensor:
    """Sum over all processes that train together, with gradients. DDP's mean of the gradients is then the gradient of
    the global loss, because the backward of this sum is again a sum."""
    if torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized():
        return all_reduce(sums)
    return sums


def ccc_loss(predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    r"""
    `1 - CCC`, averaged over the outputs, of all labelled samples of the global batch.

    `CCC = 2 s_xy / (s_x² + s_y² + (x̄ - ȳ)²)` with population variances (Lin 1989; the paper, equation of the loss; the
    authors' training code has sample variances). It is no mean over samples: in distributed training its sums are
    reduced over all processes, so that the loss is that of the whole batch. Computed in float32.

    Args:
        predictions (`torch.FloatTensor` of shape `(..., outputs)`).
        labels (`torch.FloatTensor` of shape `(..., outputs)`): -5 or NaN where not annotated; those entries are left out.
            An output without any label counts with a loss of 0.

    Returns:
        `torch.FloatTensor` of shape `()`: in [0, 2].

    Raises:
        ValueError: if the shapes differ.
    """
    if predictions.shape != labels.shape:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and predictions {tuple(predictions.shape)}: give one label for "
            "each clip and output, -5 where there is none."
        )
    x, y = predictions.float().flatten(0, -2), labels.float().flatten(0, -2)
    valid = (y != IGNORED_LABEL) & ~y.isnan()
    x, y = torch.where(valid, x, 0), torch.where(valid, y, 0)
    count, x_sum, y_sum = _global_sum(torch.stack([valid.sum(0).float(), x.sum(0), y.sum(0)]))
    x_mean, y_mean = x_sum / count.clamp(min=1), y_sum / count.clamp(min=1)
    x, y = torch.where(valid, x - x_mean, 0), torch.where(valid, y - y_mean, 0)
    xy, xx, yy = _global_sum(torch.stack([(x * y).sum(0), (x * x).sum(0), (y * y).sum(0)]))
    ccc = 2 * xy / (xx + yy + count * (x_mean - y_mean) ** 2 + 1e-8)
    return torch.where(count > 0, 1 - ccc, 0 * xy).mean()


# Windows of a track --------------------------------------------------------------------------------------------------


def to_windows(x: torch.Tensor, shifts: int) -> torch.Tensor:
    """What stands for overlapping clips `(batch, clips, ...)` as windows of clips that follow each other, `(batch * shifts,
    clips / shifts, ...)`: every `shifts`-th clip is in the same."""
    return x.unflatten(1, (-1, shifts)).transpose(1, 2).flatten(0, 1)


def from_windows(x: torch.Tensor, shifts: int) -> torch.Tensor:
    """Back from [`to_windows`]."""
    return x.unflatten(0, (-1, shifts)).transpose(1, 2).flatten(1, 2)


# Model ---------------------------------------------------------------------------------------------------------------


@dataclass
class JCAModelOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, when `labels` are given): see [`ccc_loss`].
        logits (`torch.FloatTensor` of shape `(batch, clips, outputs)`): valence and arousal at the end of each clip, in
            about [-1, 1].
        video_hidden_state, audio_hidden_state (`torch.FloatTensor` of shape `(batch, clips, projection_size)`): the
            attended features.
        video_attentions, audio_attentions (`tuple(torch.FloatTensor)`, with `output_attentions=True`): correlation maps
            of the fusion, one for each recursion; its docstring gives their shape.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    video_hidden_state: torch.FloatTensor | None = None
    audio_hidden_state: torch.FloatTensor | None = None
    video_attentions: tuple[torch.FloatTensor, ...] | None = None
    audio_attentions: tuple[torch.FloatTensor, ...] | None = None


class JCARegressor(nn.Module):
    """One output: `(batch, clips, size)` to `(batch, clips, 1)`; fc1 and fc2 of the paper's figure."""

    def __init__(self, config: JCAConfig, size: int):
        super().__init__()
        self.fc1 = nn.Linear(size, config.regressor_size)
        self.act = ACT2FN[config.regressor_act]
        self.dropout = nn.Dropout(config.dropout)
        self.fc2 = nn.Linear(config.regressor_size, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.dropout(self.act(self.fc1(hidden_states))))


class JCAModel(PreTrainedModel):
    """
    Audio-visual model for valence and arousal: two encoders, a fusion, a regressor for each output.

    Args:
        config ([`JCAConfig`]): what it is made of. Weights are random; `from_pretrained` has trained ones.

    Raises:
        ValueError: if an encoder does not fit its slot, or the fusion needs features of one width and gets two.
    """

    config: JCAConfig
    base_model_prefix = "jca"
    main_input_name = "pixel_values"
    input_modalities = ("video", "audio")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # `**kwargs` would make Trainer believe the loss is already divided for accumulation
    _no_split_modules = ["R2Plus1DBlock", "I3DMixed"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: JCAConfig):
        super().__init__(config)
        for modality in config.modalities:
            setattr(self, f"{modality}_encoder", build_encoder(getattr(config, f"{modality}_config"), modality))
        self.sizes = {modality: getattr(self, f"{modality}_size") for modality in config.modalities}
        positions = (getattr(config.video_config, "spatial_size", None) or 0) ** 2
        if positions and len(self.sizes) > 1:
            audio_size = config.projection_size or self.sizes["audio"]
            self.sizes["video"] //= positions
            self.spatial_attention = SpatialAttention(
                self.sizes["video"], positions, audio_size, config.scrambled_positions
            )
        temporal_class = TEMPORAL_CLASSES[config.temporal_layer]
        for modality, size in self.sizes.items():
            if config.projection_size is not None:
                setattr(self, f"{modality}_projection", nn.Linear(size, config.projection_size))
                self.sizes[modality] = config.projection_size
            if modality in config.temporal:
                width = self.sizes[modality]
                setattr(self, f"{modality}_temporal", temporal_class(width, width, dropout=0.1))
        if len(set(self.sizes.values())) > 1 and config.fusion != "concat":
            raise ValueError(
                f"fusion={config.fusion!r} needs features of one width, and the encoders make {self.sizes}: set "
                "projection_size."
            )
        if len(self.sizes) > 1:
            self.fusion = FUSION_CLASSES[config.fusion](config, self.sizes["video"])
            if config.gated:
                self.video_gate, self.audio_gate = (GatedResidual(size) for size in self.sizes.values())
        size = sum(self.sizes.values())
        if config.head_input == "raw_video":
            size = self.video_size + self.sizes["video"]
        if "joint" in config.temporal:
            self.joint_temporal = temporal_class(size, self.sizes[config.modalities[0]])
            size = self.sizes[config.modalities[0]]
        self.regressors = nn.ModuleList(JCARegressor(config, size) for _ in range(config.num_labels))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_fusion_weights(module)  # the encoders have their own

    @classmethod
    def from_encoders(
        cls, video: str | os.PathLike | None = None, audio: str | os.PathLike | None = None, **kwargs: Any
    ) -> "JCAModel":
        """
        A model with trained encoders, and a fusion and regressors that are still to be trained.
        [`JCAProcessor.from_encoders`] gives the processor that fits.

        ```python
        model = JCAModel.from_encoders("MCG-NJU/videomae-base", "facebook/wav2vec2-base", fusion="transformer")
        ```

        Args:
            video, audio (`str` or `os.PathLike`, *optional*): folder or Hub repository of the encoder of a modality, which
                may hold more than it: the vision part of CLIP or SigLIP, the encoder of Whisper. One that is left out is
                built from its config with random weights.
            kwargs: arguments of [`JCAConfig`]. `video_config` and `audio_config` as a dict change what the encoder's own
                config says, such as `audio_config={"mask_time_prob": 0.05}`; SpecAugment and layerdrop are off unless
                named there.

        Returns:
            [`JCAModel`] in float32 and in evaluation mode.
        """
        sources = {"video": video, "audio": audio}
        sources = {modality: source for modality, source in sources.items() if source is not None}
        for modality, source in sources.items():
            config, name = AutoConfig.from_pretrained(source), f"{modality}_config"
            part = getattr(config, "vision_config" if modality == "video" else name, config)
            settings = {key: value for key, value in part.to_dict().items() if key not in WITHOUT_SPEC_AUGMENT}
            kwargs[name] = {**settings, **kwargs.get(name, {})}
        model = cls(JCAConfig(**kwargs))
        for modality, source in sources.items():
            config = getattr(model.config, f"{modality}_config")
            trained = trim_encoder(AutoModel.from_pretrained(source, config=config, dtype=torch.float32))
            getattr(model, f"{modality}_encoder").load_state_dict(trained.state_dict())
        return model.eval()

    def get_input_embeddings(self) -> None:
        """There is no table of embeddings; Accelerate asks for it under FSDP."""

    def freeze_encoders(self) -> None:
        """Leave the encoders as they are when the rest is trained: no gradients, evaluation mode."""
        for modality in self.config.modalities:
            getattr(self, f"{modality}_encoder").requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "JCAModel":
        """Training mode, or with `mode=False` evaluation mode; encoders that are frozen stay in the latter."""
        super().train(mode)
        for modality in self.config.modalities:
            encoder = getattr(self, f"{modality}_encoder")
            if not any(parameter.requires_grad for parameter in encoder.parameters()):
                encoder.eval()  # batch norm would go on to count and dropout to drop in a frozen encoder
        return self

    @property
    def video_size(self) -> int:
        """Width of `video_features`."""
        return feature_size(self.config.video_config)

    @property
    def audio_size(self) -> int:
        """Width of `audio_features`."""
        return feature_size(self.config.audio_config)

    def get_video_features(
        self, pixel_values: torch.FloatTensor, video_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """What the visual encoder makes of each clip; with `tracks` in its configuration a window is one track.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, clips, frames, channels, height, width)`).
            video_mask (`torch.Tensor` of shape `(batch, clips)`, *optional*): clips that it leaves out are not encoded.

        Returns:
            `torch.FloatTensor` of shape `(batch, clips, video_size)`, to be given back as `video_features`.
        """
        if not getattr(self.video_encoder.config, "tracks", False) or pixel_values.shape[1] < 2:
            return encode_present(self.video_encoder, pixel_values, video_mask)
        clips, length = pixel_values.shape[1:3]
        mask = torch.ones(pixel_values.shape[:2], device=pixel_values.device) if video_mask is None else video_mask
        if not torch.compiler.is_compiling():
            seen = (mask != 0).any(dim=1)
            if not seen.any():
                return encode_present(self.video_encoder, pixel_values, mask)
            if not seen.all():  # what is not there is to leave the statistics of batch normalisation alone
                features = self.get_video_features(pixel_values[seen], mask[seen])
                return features.new_zeros(len(seen), *features.shape[1:]).index_put((seen,), features)
        frames = torch.arange(clips * length, device=mask.device).view(1, clips, length)
        frames = torch.where(mask.unsqueeze(-1) == 0, -1, frames)
        shown = mask.repeat_interleave(length, dim=1)
        return self.get_track_features(pixel_values.flatten(1, 2), shown, frames, (length, 1, length))

    @property
    def reads_tracks(self) -> bool:
        """Whether [`JCAModel.get_track_features`] has the features of clips that overlap for less work."""
        return "video" in self.config.modalities and reads_tracks(self.video_encoder)

    def get_track_features(
        self,
        pixel_values: torch.FloatTensor,
        frame_mask: torch.Tensor,
        clip_frames: torch.LongTensor,
        sizes: tuple[int, int, int],
    ) -> torch.FloatTensor:
        """What the visual encoder makes of the clips of a track, see `JCAProcessor.windows`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`).
            frame_mask (`torch.Tensor` of shape `(batch, frames)`): 0 for a frame that shows no face.
            clip_frames (`torch.LongTensor` of shape `(batch, clips, clip_length)`): where the frames of each clip are, -1
                if it shows no face.
            sizes (`tuple[int, int, int]`): of `JCAProcessor.track_sizes`.

        Returns:
            `torch.FloatTensor` of shape `(batch, clips, video_size)`.
        """
        return encode_track(self.video_encoder, pixel_values, frame_mask, clip_frames, sizes)

    def track_windows(
        self,
        pixel_values: torch.FloatTensor,
        frame_mask: torch.Tensor,
        clip_frames: torch.LongTensor,
        sizes: tuple[int, int, int],
        **inputs: torch.Tensor,
    ) -> tuple[dict[str, torch.Tensor], int]:
        """
        A track as the windows of clips that follow each other: inputs of [`JCAModel.forward`], `(batch * shifts, clips /
        shifts, ...)`, with the visual encoder's features, and the number of `shifts`, for [`from_windows`].

        Args:
            pixel_values, frame_mask, clip_frames, sizes: see [`JCAModel.get_track_features`].
            inputs: of [`JCAModel.forward`] for the clips of the track, `(batch, clips, ...)`, by rising ends.
        """
        inputs["video_features"] = self.get_track_features(pixel_values, frame_mask, clip_frames, sizes)
        clip_length, stride, hop = sizes
        shifts = clip_length * stride // hop
        return {name: to_windows(x, shifts) for name, x in inputs.items()}, shifts

    def forward_track(self, sizes: tuple[int, int, int], **inputs: torch.Tensor) -> torch.FloatTensor:
        """The outputs of all clips of a track `(batch, clips, outputs)`, each in one of its windows; `sizes` and `inputs` as
        of [`JCAModel.track_windows`]."""
        windows, shifts = self.track_windows(sizes=sizes, **inputs)
        return from_windows(self(**windows).logits, shifts)

    def get_audio_features(
        self, input_features: torch.FloatTensor, audio_mask: torch.Tensor | None = None
    ) -> torch.FloatTensor:
        """What the audio encoder makes of each clip.

        Args:
            input_features (`torch.FloatTensor`): what the encoder reads, as the processor gives it under the name
                `input_features` or `input_values`: log-mel spectrograms `(batch, clips, mel bands, steps)` (`(batch, clips,
                steps, mel bands)` for AST and Wav2Vec2-BERT) or waveforms `(batch, clips, samples)`.
            audio_mask (`torch.Tensor` of shape `(batch, clips)`, *optional*): clips that it leaves out are not encoded.

        Returns:
            `torch.FloatTensor` of shape `(batch, clips, audio_size)`, to be given back as `audio_features`.
        """
        return encode_present(self.audio_encoder, input_features, audio_mask)

    def _modality(
        self,
        modality: str,
        inputs: torch.Tensor | None,
        features: torch.Tensor | None,
        mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Encode and check one modality: its features `(batch, clips, size)` and mask `(batch, clips, 1)`."""
        if features is None and inputs is not None:
            features = getattr(self, f"get_{modality}_features")(inputs, mask)
        if features is None:
            return None, None
        size = getattr(self, f"{modality}_size")
        if features.ndim != 3 or features.shape[-1] != size:
            raise ValueError(
                f"{modality}_features have shape {tuple(features.shape)} and must be (batch, clips, {size}): {size} is the "
                f"width of this model's {modality} encoder. Use features that get_{modality}_features of the same encoder "
                "made."
            )
        features = features.to(self.dtype)  # they are kept in float16
        mask = features.new_ones(features.shape[:2]) if mask is None else mask
        if mask.shape != features.shape[:2]:
            raise ValueError(
                f"{modality}_mask has shape {tuple(mask.shape)} and must be (batch, clips) = {tuple(features.shape[:2])}."
            )
        if not torch.compiler.is_compiling() and not features[mask != 0].isfinite().all():
            where = (~features.isfinite().all(-1) & (mask != 0)).nonzero()[0].tolist()
            raise ValueError(
                f"{modality}_features are not finite in window {where[0]}, clip {where[1]}: mend the clip or set its "
                f"{modality}_mask to 0."
            )
        mask = mask.to(features.dtype).unsqueeze(-1)
        # `where` and not a product: what stands in a clip that is not there may be anything, NaN too; and before the
        # first layer, whose gradient would be 0 * NaN
        return torch.where(mask == 0, 0, features), mask

    def _prepare(self, modality: str, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Project one modality, zero what is masked, run its temporal layer: `(batch, clips, dim)` as the fusion sees it."""
        if self.config.projection_size is not None:
            features = getattr(self, f"{modality}_projection")(features)
        features = features * mask  # the bias of a projection does not stand for a clip that is not there
        return getattr(self, f"{modality}_temporal")(features) if modality in self.config.temporal else features

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        video_features: torch.FloatTensor | None = None,
        audio_features: torch.FloatTensor | None = None,
        video_mask: torch.Tensor | None = None,
        audio_mask: torch.Tensor | None = None,
        labels: torch.FloatTensor | None = None,
        output_attentions: bool | None = None,
        input_values: torch.FloatTensor | None = None,
        **kwargs: Any,
    ) -> JCAModelOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, clips, frames, channels, height, width)`): face crops.
            input_features (`torch.FloatTensor` of shape `(batch, clips, mel bands, steps)`): log-mel spectrograms.
            input_values (`torch.FloatTensor` of shape `(batch, clips, samples)`): waveforms, for an audio encoder that
                reads `input_values`, in place of `input_features`; see [`JCAModel.get_audio_features`].
            video_features, audio_features (`torch.FloatTensor` of shape `(batch, clips, size)`): what the encoders made
                of a clip, instead of `pixel_values` and `input_features`.
            video_mask, audio_mask (`torch.Tensor` of shape `(batch, clips)`): 1 where the modality is there, 0 where it
                is not (no face, no audio, no clip). A modality given in no form is missing from every clip.
            labels (`torch.FloatTensor` of shape `(batch, clips, outputs)`): -5 where not annotated.
            output_attentions (`bool`): return the correlation maps.

        Raises:
            ValueError: if no input of a modality of the model is given, or shapes do not fit.
        """
        sound = input_features
        if "audio" in self.config.modalities:
            sounds = {"input_features": input_features, "input_values": input_values}
            reads_values = self.audio_encoder.main_input_name == "input_values"
            sound = sounds.pop("input_values" if reads_values else "input_features")
            for name, other in sounds.items():
                if other is not None:
                    raise ValueError(
                        f"{name} were given, and the audio encoder of this model ({self.config.audio_config.model_type}) "
                        f"reads input_{'values' if reads_values else 'features'}: use the processor that was saved with "
                        "it, or JCAProcessor.from_encoders."
                    )
        given = {
            "video": (pixel_values, video_features, video_mask),
            "audio": (sound, audio_features, audio_mask),
        }
        hidden, masks = {}, {}
        for modality in self.config.modalities:
            hidden[modality], masks[modality] = self._modality(modality, *given[modality])
        present = next((m for m in self.config.modalities if hidden[m] is not None), None)
        if present is None:
            raise ValueError(
                f"This model reads {' and '.join(self.config.modalities)}, and none was given: pass pixel_values or "
                "video_features, input_features, input_values or audio_features."
            )
        for modality in self.config.modalities:
            if hidden[modality] is None:  # missing from every clip
                shape = (*hidden[present].shape[:2], getattr(self, f"{modality}_size"))
                hidden[modality] = hidden[present].new_zeros(shape)
                masks[modality] = torch.zeros_like(masks[present])
        shapes = {name: tuple(mask.shape[:2]) for name, mask in masks.items()}
        # compared, not put into a set: the sizes of an exported graph have no hash
        if any(shape != shapes[present] for shape in shapes.values()):
            raise ValueError(f"Video and audio must have the same (batch, clips), and have {shapes}.")

        raw_video = hidden.get("video")
        if self.config.normalize_features:
            hidden = {modality: F.normalize(features, dim=-1) for modality, features in hidden.items()}
        if "audio" in hidden:
            hidden["audio"] = self._prepare("audio", hidden["audio"], masks["audio"])
        if "video" in hidden:
            if hasattr(self, "spatial_attention"):
                hidden["video"] = self.spatial_attention(hidden["video"], hidden["audio"])
            hidden["video"] = self._prepare("video", hidden["video"], masks["video"])
        maps = {"video": [], "audio": []}
        for _ in range(self.config.num_recursions if len(hidden) > 1 else 0):  # with shared weights
            video, audio, video_map, audio_map = self.fusion(
                hidden["video"], hidden["audio"], masks["video"], masks["audio"]
            )
            if self.config.gated:
                video, audio = self.video_gate(hidden["video"], video), self.audio_gate(hidden["audio"], audio)
            hidden = {"video": video, "audio": audio}
            maps["video"].append(video_map)
            maps["audio"].append(audio_map)
        parts = [hidden[modality] for modality in ("video", "audio") if modality in hidden]  # in the order of J
        if self.config.head_input == "raw_video":
            parts = [raw_video, hidden["video"]]
        joint = torch.cat(parts, dim=-1)
        if "joint" in self.config.temporal:
            joint = self.joint_temporal(joint)
        logits = torch.cat([regressor(joint) for regressor in self.regressors], dim=-1)
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        return JCAModelOutput(
            loss=None if labels is None else ccc_loss(logits, labels),
            logits=logits,
            video_hidden_state=hidden.get("video"),
            audio_hidden_state=hidden.get("audio"),
            video_attentions=tuple(maps["video"]) if output_attentions else None,
            audio_attentions=tuple(maps["audio"]) if output_attentions else None,
        )


JCAModel.register_for_auto_class("AutoModel")

__all__ = ["JCAModel", "JCAModelOutput", "ccc_loss"]
