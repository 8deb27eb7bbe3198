"""What an encoder makes of a clip: the video encoders that Transformers does not have, and how any encoder is called.

Shapes: `(batch, clips, ...)` in, pooled features `(batch, clips, size)` out; an encoder itself sees one clip at a time.
"""

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple


try:  # copied next to the weights: part of a `transformers_modules.*` package
    from .configuration_jca import R2Plus1DConfig
except ImportError:  # installed or on sys.path: a top-level module
    from configuration_jca import R2Plus1DConfig


class R2Plus1DConv(nn.Sequential):
    """A 3x3x3 convolution factored into 1x3x3 in space and 3x1x1 in time, with as many parameters (1711.11248, 3.5)."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int, stride: int = 1):
        super().__init__(
            nn.Conv3d(in_channels, mid_channels, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
            nn.BatchNorm3d(mid_channels),
            nn.ReLU(),
            nn.Conv3d(mid_channels, out_channels, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
        )


class R2Plus1DBlock(GradientCheckpointingLayer):
    """Basic residual block of two factored convolutions: `(batch, in, t, h, w)` to `(batch, out, t/s, h/s, w/s)`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        # one width for both convolutions, computed from the block's input as torchvision does
        mid_channels = (in_channels * out_channels * 27) // (in_channels * 9 + 3 * out_channels)
        self.conv1 = R2Plus1DConv(in_channels, out_channels, mid_channels, stride)
        self.norm1 = nn.BatchNorm3d(out_channels)
        self.conv2 = R2Plus1DConv(out_channels, out_channels, mid_channels)
        self.norm2 = nn.BatchNorm3d(out_channels)
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm3d(out_channels)
            )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = self.shortcut(hidden_states)
        hidden_states = self.norm1(self.conv1(hidden_states)).relu()
        return (self.norm2(self.conv2(hidden_states)) + residual).relu()


class R2Plus1DModel(PreTrainedModel):
    """R(2+1)D video encoder, numerically torchvision's `r2plus1d_18` at the default configuration."""

    config: R2Plus1DConfig
    base_model_prefix = "r2plus1d"
    main_input_name = "pixel_values"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["R2Plus1DBlock"]

    def __init__(self, config: R2Plus1DConfig):
        super().__init__(config)
        width = config.hidden_sizes[0]
        self.stem = nn.Sequential(
            nn.Conv3d(config.num_channels, config.stem_size, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
            nn.BatchNorm3d(config.stem_size),
            nn.ReLU(),
            nn.Conv3d(config.stem_size, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(),
        )
        stages = []
        for index, (out_channels, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
            blocks = [R2Plus1DBlock(width, out_channels, stride=1 if index == 0 else 2)]
            blocks += [R2Plus1DBlock(out_channels, out_channels, stride=1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            width = out_channels
        self.stages = nn.ModuleList(stages)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv3d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @can_return_tuple
    def forward(self, pixel_values: torch.FloatTensor, **kwargs) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`): normalised crops.

        Returns:
            `last_hidden_state` of shape `(batch, hidden_sizes[-1], frames / 8, height / 16, width / 16)` and
            `pooler_output`, its mean, of shape `(batch, hidden_sizes[-1])`.
        """
        hidden_states = self.stem(pixel_values.transpose(1, 2))
        for stage in self.stages:
            hidden_states = stage(hidden_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states, pooler_output=hidden_states.mean(dim=(2, 3, 4))
        )


OWN_ENCODERS = {"r2plus1d": R2Plus1DModel}


def build_encoder(config) -> PreTrainedModel:
    """The encoder of a sub-config. Ours by name, since `AutoModel` knows them only where `jca` was imported."""
    own = OWN_ENCODERS.get(config.model_type)
    return AutoModel.from_config(config) if own is None else own(config)


def feature_size(config) -> int:
    """Width of the feature that the encoder of this sub-config makes of a clip."""
    return getattr(config, "hidden_size", None) or config.hidden_sizes[-1]


def encode(encoder: PreTrainedModel, clips: torch.Tensor) -> torch.Tensor:
    """`(batch, clips, ...)` through the encoder, clip by clip, to pooled features `(batch, clips, dim)`."""
    return encoder(clips.flatten(0, 1)).pooler_output.flatten(1).unflatten(0, clips.shape[:2])


__all__ = ["R2Plus1DModel", "build_encoder", "encode", "feature_size"]
