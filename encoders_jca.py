"""What an encoder makes of a clip: the video encoders that Transformers does not have, and how any encoder is called.

Shapes: `(batch, clips, ...)` in, pooled features `(batch, clips, size)` out; an encoder itself sees one clip at a time.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple


try:  # copied next to the weights: part of a `transformers_modules.*` package
    from .configuration_jca import I3DConfig, R2Plus1DConfig, ResNetGRUConfig
except ImportError:  # installed or on sys.path: a top-level module
    from configuration_jca import I3DConfig, R2Plus1DConfig, ResNetGRUConfig


@torch.no_grad()
def init_convolution_weights(module: nn.Module) -> None:
    """He's initialisation of convolutions; those of a TCN start with the kernels that it draws."""
    if isinstance(module, nn.Conv3d | nn.Conv1d):
        init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, TCNConv):
        init.kaiming_normal_(module.direction, nonlinearity="relu")
        init.copy_(module.length, module.direction.norm(dim=(1, 2), keepdim=True))
        init.zeros_(module.bias)


# R(2+1)D -------------------------------------------------------------------------------------------------------------


STRETCH = 8  # steps; with 16 a track took 4 % longer, with 4 a fifth


class TimeConv(nn.Conv3d):
    """A convolution over three steps: `(batch, in, t, h, w)` to `(batch, out, t/s, h, w)`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(in_channels, out_channels, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)

    def forward(self, hidden_states: torch.Tensor, stride: int | None = None, padding: int = 1) -> torch.Tensor:
        """With another stride in place of the layer's, and with or without zeros before and behind."""
        stride = self.stride[0] if stride is None else stride
        if torch.compiler.is_compiling():  # graphs have layouts of their own
            return F.conv3d(hidden_states, self.weight, self.bias, (stride, 1, 1), (padding, 0, 0))
        # steps by positions is a picture, for whose convolution PyTorch's kernels on a CPU are up to four times as fast
        out = F.conv2d(hidden_states.flatten(3), self.weight[..., 0], self.bias, (stride, 1), (padding, 0))
        return out.unflatten(3, hidden_states.shape[3:])


class R2Plus1DConv(nn.Sequential):
    """A 3x3x3 convolution factored into 1x3x3 in space and 3x1x1 in time, with as many parameters (1711.11248, 3.5)."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int, stride: int = 1):
        super().__init__(
            nn.Conv3d(in_channels, mid_channels, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
            nn.BatchNorm3d(mid_channels),
            nn.ReLU(),
            TimeConv(mid_channels, out_channels, stride),
        )

    def forward(self, hidden_states: torch.Tensor, stride: int | None = None) -> torch.Tensor:
        """
        On a CPU one clip after the other, and a track a stretch at a time: the same result, and what is between the two
        convolutions stays in the caches.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch, in, t, h, w)`).
            stride (`int`, *optional*): in time, in place of the layer's.
        """
        conv, norm, relu, time = self

        def space(stretch: torch.Tensor) -> torch.Tensor:
            return relu(norm(conv(stretch)))

        stride = time.stride[0] if stride is None else stride
        whole = self.training or hidden_states.device.type != "cpu" or torch.compiler.is_compiling()
        if whole or (len(hidden_states) == 1 and hidden_states.shape[2] <= STRETCH):
            return time(space(hidden_states), stride)
        if len(hidden_states) > 1:
            return torch.cat([self(clip, stride) for clip in hidden_states.split(1)])
        out, seen = [], None  # the steps of a stretch that the next one sees, too
        for start in range(0, hidden_states.shape[2], STRETCH):
            window = space(hidden_states[:, :, start : start + STRETCH])
            zeros = torch.zeros_like(window[:, :, :1])
            last = [zeros] if start + STRETCH >= hidden_states.shape[2] else []
            window = torch.cat([zeros if seen is None else seen, window, *last], dim=2)
            seen = window[:, :, stride - 3 :]
            out.append(time(window, stride, padding=0))
        return torch.cat(out, dim=2)


def to_phases(hidden_states: torch.Tensor) -> torch.Tensor:
    """`(batch, channels, t, h, w)` to `(2 * batch, channels, t/2, h, w)`: the even steps, then the odd ones."""
    return hidden_states.unflatten(2, (-1, 2)).movedim(3, 0).flatten(0, 1)


class R2Plus1DBlock(GradientCheckpointingLayer):
    """Basic residual block of two factored convolutions: `(batch, in, t, h, w)` to `(batch, out, t/s, h/s, w/s)`. With
    `phases` its stride of 2 in time drops no step: the even ones and the odd ones go on, `(2 * batch, ...)`."""

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

    def forward(self, hidden_states: torch.Tensor, phases: bool = False) -> torch.Tensor:
        if phases:
            conv, norm = self.shortcut
            residual = norm(F.conv3d(hidden_states, conv.weight, conv.bias, (1, *conv.stride[1:])))
            hidden_states = self.norm1(self.conv1(hidden_states, stride=1)).relu()
            residual, hidden_states = to_phases(residual), to_phases(hidden_states)
        else:
            residual = self.shortcut(hidden_states)
            hidden_states = self.norm1(self.conv1(hidden_states)).relu()
        return (self.norm2(self.conv2(hidden_states)) + residual).relu()


class R2Plus1DModel(PreTrainedModel):
    """
    R(2+1)D video encoder, numerically torchvision's `r2plus1d_18` at the default configuration.

    Args:
        config ([`R2Plus1DConfig`]): its sizes. Weights are random.
    """

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
            TimeConv(config.stem_size, width),
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
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_convolution_weights(module)

    @can_return_tuple
    def forward(self, pixel_values: torch.FloatTensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`): normalised crops.

        Returns:
            `last_hidden_state` of shape `(batch, hidden_sizes[-1], frames / 8, height / 16, width / 16)` and
            `pooler_output` of shape `(batch, hidden_size)`: its mean or, with `config.spatial_size`, its mean over time as
            a flattened map.
        """
        hidden_states = self.stem(pixel_values.transpose(1, 2))
        for stage in self.stages:
            hidden_states = stage(hidden_states)
        pooled = F.adaptive_avg_pool2d(hidden_states.mean(dim=2), self.config.spatial_size or 1)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled.flatten(1))

    def forward_track(self, frames: torch.FloatTensor, clip_length: int, hop: int) -> torch.FloatTensor:
        """
        The network over a track as one: features of the clips that begin with every `hop`-th frame.

        A stage whose stride would drop what the hop needs keeps all steps and goes on with the even and the odd ones as two
        tracks (à trous, arXiv 1312.6229, section 3.3, in time). A clip alone in a track has the features of
        [`R2Plus1DModel.forward`]; in a longer one its neighbours stand where zeros did.

        Args:
            frames (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`).
            clip_length (`int`), hop (`int`): frames of a clip, and from the first frame of one to that of the next.

        Returns:
            `torch.FloatTensor` of shape `(batch, clips, hidden_size)`.

        Raises:
            ValueError: if clips end between two steps of the last stage.
        """
        num_clips = (frames.shape[1] - clip_length) // hop + 1
        total = 2 ** (len(self.stages) - 1)
        if clip_length % total:
            raise ValueError(
                f"Clips have {clip_length} frames, and tracks need a multiple of {total}, the stride of this R(2+1)D: "
                "choose another clip_length, or tracks=False."
            )
        rate = math.gcd(hop, total)  # frames between two steps at the end
        whole = F.pad(frames, (0, 0, 0, 0, 0, 0, 0, -frames.shape[1] % total))
        hidden_states, stride, splits = self.stem(whole.transpose(1, 2)), 1, 0
        for index, stage in enumerate(self.stages):
            phases = index > 0 and stride == rate
            first, *others = stage
            hidden_states = first(hidden_states, phases)
            for block in others:
                hidden_states = block(hidden_states)
            if phases:
                splits += 1
            elif index:
                stride *= 2
        side = self.config.spatial_size or 1
        pooled = F.adaptive_avg_pool3d(hidden_states, (None, side, side)).transpose(1, 2).flatten(2)
        # (second phase, first phase, batch), steps, size: between the last ones lie the most frames
        pooled = pooled.unflatten(0, (*[2] * splits, len(frames)))
        pooled = pooled.movedim((splits, splits + 1), (0, 1)).flatten(1, -2)
        firsts = torch.arange(num_clips, device=frames.device) * (hop // rate)
        steps = range(0, clip_length // rate, total // rate)
        return torch.stack([pooled[:, firsts + step] for step in steps]).mean(dim=0)


# Inception-I3D -------------------------------------------------------------------------------------------------------


# channels of each block of each stage: 1x1x1 branch, two 3x3x3 branches (before and in the convolution), pooling branch
INCEPTION_STAGES = [
    [(64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)],
    [
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ],
    [(256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)],
]


class SamePadding(nn.Module):
    """TensorFlow's "SAME": zeros around `(batch, channels, t, h, w)` so that a layer which strides in height and width
    alone gives `ceil(size / stride)` rows and columns; of an odd number of zeros the last stands behind."""

    def __init__(self, kernel_size: tuple[int, int, int], stride: int):
        super().__init__()
        self.kernel_size, self.stride = kernel_size, (1, stride, stride)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        padding = []
        for size, kernel, stride in zip(hidden_states.shape[2:], self.kernel_size, self.stride, strict=True):
            total = max(kernel - (size % stride or stride), 0)
            padding = [total // 2, total - total // 2, *padding]  # the last dimension stands first
        return F.pad(hidden_states, padding) if any(padding) else hidden_states


class I3DConv(nn.Sequential):
    """Convolution, batch normalisation with TensorFlow's epsilon, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(
            SamePadding((kernel_size,) * 3, stride),
            nn.Conv3d(in_channels, out_channels, kernel_size, (1, stride, stride), bias=False),
            nn.BatchNorm3d(out_channels, eps=1e-3),
            nn.ReLU(),
        )


class I3DMaxPool(nn.Sequential):
    """Maximum over `kernel_size` steps, rows and columns. It reads what a ReLU gave, so zeros may pad."""

    def __init__(self, kernel_size: tuple[int, int, int], stride: int):
        super().__init__(SamePadding(kernel_size, stride), nn.MaxPool3d(kernel_size, (1, stride, stride)))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if (
            hidden_states.device.type == "cpu" and not torch.compiler.is_compiling()
        ):  # three times as fast in this layout
            hidden_states = hidden_states.contiguous(memory_format=torch.channels_last_3d)
        return super().forward(hidden_states)


class I3DMixed(GradientCheckpointingLayer):
    """Block of Inception: four branches side by side, `(batch, in, t, h, w)` to `(batch, sum of their outputs, t, h, w)`.

    `widths` are the channels of: the 1x1x1 branch, the two 3x3x3 branches (before and in the convolution, each), the
    pooling branch.
    """

    def __init__(self, in_channels: int, widths: list[int]):
        super().__init__()
        first, middle_2, second, middle_3, third, fourth = widths
        self.branches = nn.ModuleList(
            [
                nn.Sequential(I3DConv(in_channels, first, 1)),
                nn.Sequential(I3DConv(in_channels, middle_2, 1), I3DConv(middle_2, second, 3)),
                nn.Sequential(I3DConv(in_channels, middle_3, 1), I3DConv(middle_3, third, 3)),
                nn.Sequential(I3DMaxPool((3, 3, 3), 1), I3DConv(in_channels, fourth, 1)),
            ]
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(hidden_states) for branch in self.branches], dim=1)


class TCNConv(nn.Module):
    """Causal dilated convolution `(batch, in, steps)` to `(batch, out, steps)`, its kernel as a direction and a length for
    each output (weight normalisation, arXiv 1602.07868)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.direction = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size))
        self.length = nn.Parameter(torch.empty(out_channels, 1, 1))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weight = self.direction * (self.length / self.direction.norm(dim=(1, 2), keepdim=True))
        past = (weight.shape[-1] - 1) * self.dilation
        return F.conv1d(F.pad(hidden_states, (past, 0)), weight, self.bias, dilation=self.dilation)


class TCNBlock(nn.Module):
    """Level of a TCN: two causal convolutions of one dilation and a residual connection. Its activations leak 1 %, as in
    the authors' code; those of the TCN's paper do not."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int, dropout: float):
        super().__init__()
        self.conv1 = TCNConv(in_channels, out_channels, kernel_size, dilation)
        self.conv2 = TCNConv(out_channels, out_channels, kernel_size, dilation)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = self.shortcut(hidden_states)
        hidden_states = self.dropout(F.leaky_relu(self.conv1(hidden_states)))
        hidden_states = self.dropout(F.leaky_relu(self.conv2(hidden_states)))
        return F.leaky_relu(hidden_states + residual)


class TCN(nn.Sequential):
    """Temporal convolutional network (Bai et al., arXiv 1803.01271), `(batch, channels[0], steps)` to `(batch, channels[-1],
    steps)`: a level for each further number of `channels`, of which level i dilates by 2^i, with kernels of `kernel_size`
    steps and `dropout` in [0, 1] after each convolution."""

    def __init__(self, channels: list[int], kernel_size: int, dropout: float):
        super().__init__(
            *(TCNBlock(channels[i], channels[i + 1], kernel_size, 2**i, dropout) for i in range(len(channels) - 1))
        )


class I3DModel(PreTrainedModel):
    """
    Inception-I3D video encoder that keeps every step of time, with an optional TCN over its steps.

    Args:
        config ([`I3DConfig`]): its sizes. Weights are random.
    """

    config: I3DConfig
    base_model_prefix = "i3d"
    main_input_name = "pixel_values"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["I3DMixed"]

    def __init__(self, config: I3DConfig):
        super().__init__(config)
        first, second = config.width(64), config.width(192)
        self.stem = nn.Sequential(
            I3DConv(config.num_channels, first, 7, stride=2),
            I3DMaxPool((1, 3, 3), 2),
            I3DConv(first, first, 1),
            I3DConv(first, second, 3),
            I3DMaxPool((1, 3, 3), 2),
        )
        in_channels, stages = second, []
        for blocks in INCEPTION_STAGES:
            stage = nn.Sequential()
            for block in blocks:
                widths = [config.width(channels) for channels in block]
                stage.append(I3DMixed(in_channels, widths))
                in_channels = widths[0] + widths[2] + widths[4] + widths[5]
            stages.append(stage)
        stages[0].append(I3DMaxPool((3, 3, 3), 2))  # the published network halves time here and in the next
        stages[1].append(I3DMaxPool((2, 2, 2), 2))
        self.stages = nn.ModuleList(stages)
        self.tcn = TCN([in_channels, *(config.tcn_channels or [])], config.tcn_kernel_size, config.tcn_dropout)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_convolution_weights(module)

    @can_return_tuple
    def forward(self, pixel_values: torch.FloatTensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`): crops in [-1, 1] for
                the published weights, of 224 pixels or any other size.

        Returns:
            `last_hidden_state` of shape `(batch, frames - 1, hidden_size)`, the steps after the last average pool or after
            the TCN, and `pooler_output` of shape `(batch, hidden_size)`, their mean or, after a TCN, their maximum.
        """
        hidden_states = self._steps(pixel_values)
        pooled = hidden_states.amax(dim=-1) if self.config.tcn_channels else hidden_states.mean(dim=-1)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states.mT, pooler_output=pooled)

    def forward_track(self, frames: torch.FloatTensor, clip_length: int, hop: int) -> torch.FloatTensor:
        """
        The network over a track as one: no layer strides in time, so that a clip pools the steps of its frames. `frames`,
        `clip_length` and `hop` as of [`R2Plus1DModel.forward_track`].

        Raises:
            ValueError: if clips have a single frame, of which there are no steps.
        """
        if clip_length < 2:
            raise ValueError("Clips have one frame, and tracks need two: choose another clip_length, or tracks=False.")
        pool = F.max_pool1d if self.config.tcn_channels else F.avg_pool1d
        return pool(self._steps(frames), clip_length - 1, stride=hop).mT

    def _steps(self, frames: torch.FloatTensor) -> torch.FloatTensor:
        """`(batch, hidden_size, frames - 1)`, what is pooled over time."""
        hidden_states = self.stem(frames.transpose(1, 2))
        for stage in self.stages:
            hidden_states = stage(hidden_states)
        # the last average pool: 2 x 7 x 7 at 224 pixels, two steps and the whole map at any size
        hidden_states = hidden_states.mean(dim=(3, 4))
        return self.tcn(F.avg_pool1d(hidden_states, min(2, hidden_states.shape[-1]), stride=1))


# ResNet-GRU ----------------------------------------------------------------------------------------------------------


class ResNetGRUModel(PreTrainedModel):
    """
    Video encoder: a ResNet over each frame, a GRU over the frames of the clip.

    Args:
        config ([`ResNetGRUConfig`]): its sizes. Weights are random.
    """

    config: ResNetGRUConfig
    base_model_prefix = "resnet_gru"
    main_input_name = "pixel_values"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["ResNetConvLayer", "ResNetShortCut"]

    def __init__(self, config: ResNetGRUConfig):
        super().__init__(config)
        self.resnet = AutoModel.from_config(config.resnet_config)
        self.gru = nn.GRU(feature_size(config.resnet_config), config.hidden_size, config.num_layers, batch_first=True)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.GRU):
            bound = module.hidden_size**-0.5  # torch's default
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)

    @can_return_tuple
    def forward(self, pixel_values: torch.FloatTensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`): normalised crops.

        Returns:
            `last_hidden_state` of shape `(batch, frames, hidden_size)`, the GRU after each frame, and `pooler_output` of
            shape `(batch, hidden_size)`, the GRU after the last one.
        """
        hidden_states, last = self.gru(self.encode_frames(pixel_values))
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=last[-1])

    def forward_frames(self, frames: torch.FloatTensor) -> torch.FloatTensor:
        """The features `(batch, hidden_size)` of clips, from what [`ResNetGRUModel.encode_frames`] made of their frames
        `(batch, frames, size)`."""
        return self.gru(frames)[1][-1]

    def encode_frames(self, pixel_values: torch.FloatTensor) -> torch.FloatTensor:
        """What the ResNet makes of each frame, `(batch, frames, size)`, of `pixel_values` `(batch, frames, channels, height,
        width)`."""
        hidden_states = self.resnet.embedder(pixel_values.flatten(0, 1))
        for stage in self.resnet.encoder.stages:
            if self.gradient_checkpointing and self.training:  # Transformers' ResNet has none of its own
                hidden_states = self._gradient_checkpointing_func(stage.__call__, hidden_states)
            else:
                hidden_states = stage(hidden_states)
        return self.resnet.pooler(hidden_states).flatten(1).unflatten(0, pixel_values.shape[:2])


# Any encoder ---------------------------------------------------------------------------------------------------------


OWN_ENCODERS = {"r2plus1d": R2Plus1DModel, "i3d": I3DModel, "resnet_gru": ResNetGRUModel}
# Of no use to a feature, and DDP refuses weights that get no gradient. The poolers with weights, of ViT and ViViT, are in
# hardly any published checkpoint and would be random.
UNUSED_PARTS = ("mask_token", "pooler", "predictor")
PREFIX_TOKENS = ("cls_token", "distillation_token")
FORWARD_ARGUMENTS = {"vjepa2": {"skip_predictor": True}}
FITTING = {
    "video": "a video encoder (r2plus1d, i3d, resnet_gru, videomae, vjepa2, timesformer, vivit) or an image encoder, which "
    "sees frame by frame (vit, dinov2, dinov3_vit, clip_vision_model, siglip_vision_model, resnet, convnext)",
    "audio": "an audio encoder (wav2vec2, hubert, wavlm, data2vec-audio, unispeech-sat, wav2vec2-bert, whisper, "
    "audio-spectrogram-transformer) or an image encoder with num_channels=1, which sees the spectrogram (resnet)",
}


def trim_encoder(model: PreTrainedModel) -> PreTrainedModel:
    """A model of Transformers without the parts that its features are not made of: a decoder, what pretraining alone uses
    and poolers that are seldom trained."""
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    masks_time = getattr(encoder.config, "mask_time_prob", 0) > 0
    for module in list(encoder.modules()):
        for name in UNUSED_PARTS if masks_time else (*UNUSED_PARTS, "masked_spec_embed"):
            part = getattr(module, name, None)
            if isinstance(part, nn.Parameter) or (isinstance(part, nn.Module) and any(True for _ in part.parameters())):
                setattr(module, name, None)
    return encoder


def build_encoder(config: PreTrainedConfig, modality: str) -> PreTrainedModel:
    """
    The encoder of a sub-config, for the slot `"video"` or `"audio"`.

    Raises:
        ValueError: if it reads something else, or the width of its feature is not known.
    """
    # ours by name, since `AutoModel` knows them only where `jca` was imported
    own = OWN_ENCODERS.get(config.model_type)
    if getattr(config, "tracks", False) and config.model_type not in ("r2plus1d", "i3d"):
        raise ValueError(
            f"{modality}_config has tracks=True, which {config.model_type!r} can not: r2plus1d and i3d run over tracks, and "
            "encoders of frames share frames by themselves."
        )
    encoder = trim_encoder(AutoModel.from_config(config) if own is None else own(config))
    reads = encoder.main_input_name
    if modality == "video":
        fits = reads in ("pixel_values", "pixel_values_videos")
    else:
        one_channel = getattr(config, "num_channels", None) == 1
        fits = reads in ("input_values", "input_features") or (one_channel and sees_pictures(encoder))
    if not fits or feature_size(config) is None:
        why = "does not say how wide its features are" if fits else f"reads {reads}"
        raise ValueError(
            f"{modality}_config is of the type {config.model_type!r}, which {why}: the {modality} slot takes "
            f"{FITTING[modality]}."
        )
    return encoder


def feature_size(config: PreTrainedConfig) -> int | None:
    """Width of the feature that the encoder of this sub-config makes of a clip, None if the config does not say."""
    if getattr(config, "add_adapter", False):  # of the wav2vec2 family
        return config.output_hidden_size
    # MobileViT's last layer is wider than its last stage
    widths = getattr(config, "neck_hidden_sizes", None) or getattr(config, "hidden_sizes", None) or [None]
    return getattr(config, "hidden_size", None) or widths[-1]


def sees_pictures(encoder: PreTrainedModel) -> bool:
    """Whether the encoder reads single pictures, not clips of them."""
    # TimeSformer says that its input is an image
    clips = "video" in encoder.input_modalities or hasattr(encoder.config, "num_frames")
    return encoder.main_input_name == "pixel_values" and not clips


def encode_present(encoder: PreTrainedModel, clips: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """[`encode`] for the clips that `mask` `(batch, clips)` leaves in; the feature of the others is 0 and costs nothing,
    which is much at the end of a video. A graph has no such choice: compiled or exported, every clip is encoded."""
    if mask is None or torch.compiler.is_compiling() or mask.shape != clips.shape[:2]:
        return encode(encoder, clips)
    present = mask != 0
    features = torch.zeros(*clips.shape[:2], feature_size(encoder.config), device=clips.device)
    if not present.any():
        if not (torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized()):
            return features.to(clips.dtype)
        # processes that train together must agree on which parameters have a gradient
        training = encoder.training
        encoder.eval()  # whose statistics what is not there is to leave alone
        nothing = 0 * encode(encoder, torch.zeros_like(clips[:1, :1])).sum()
        encoder.train(training)
        return features.to(clips.dtype) + nothing
    encoded = encode(encoder, clips[present][None])[0]
    return features.to(encoded.dtype).masked_scatter(present.unsqueeze(-1), encoded)


def encode(encoder: PreTrainedModel, clips: torch.Tensor) -> torch.Tensor:
    """
    What an encoder makes of each clip: its own pooling if it has one (`pooler_output` of CNNs, CLIP, SigLIP, DINO, AST and
    our encoders), else the mean over its tokens but CLS. An image encoder sees frame by frame; the mean is the clip's.

    Args:
        clips (`torch.FloatTensor`): pictures `(batch, clips, frames, channels, height, width)`, spectrograms `(batch, clips,
            rows, columns)` or waveforms `(batch, clips, samples)`.

    Returns:
        `torch.FloatTensor` of shape `(batch, clips, size)`.
    """
    config, by_frame = encoder.config, sees_pictures(encoder)
    if by_frame and clips.ndim == 4:
        clips = clips[:, :, None, None]  # a spectrogram is one frame with one channel
    leading = clips.shape[: 3 if by_frame else 2]
    inputs, valid = clips.flatten(0, len(leading) - 1), None
    if config.model_type == "whisper":  # reads 30 s: silence follows, as Whisper scales it, and is not averaged
        silence = (inputs.amax(dim=(1, 2), keepdim=True) - 2).clamp(min=-1.5)
        missing = 2 * config.max_source_positions - inputs.shape[2]
        valid = (inputs.shape[2] + 1) // 2
        inputs = torch.cat([inputs, silence.expand(-1, inputs.shape[1], missing)], dim=2)
    output = encoder(**{encoder.main_input_name: inputs}, **FORWARD_ARGUMENTS.get(config.model_type, {}))
    features = getattr(output, "pooler_output", None)
    if features is None:
        tokens = output.last_hidden_state
        if tokens.ndim == 4:  # a map
            tokens = tokens.flatten(2).mT
        prefix = sum(name.endswith(PREFIX_TOKENS) for name, _ in encoder.named_parameters())
        features = tokens[:, prefix:][:, :valid].mean(dim=1)
    features = features.flatten(1).unflatten(0, leading)
    return features.mean(dim=2) if by_frame else features


def reads_tracks(encoder: PreTrainedModel) -> bool:
    """Whether clips that overlap share work, see [`encode_track`]: in encoders that see frame by frame, and those that are
    configured so."""
    config = encoder.config
    return sees_pictures(encoder) or config.model_type == "resnet_gru" or getattr(config, "tracks", False)


def encode_track(
    encoder: PreTrainedModel,
    frames: torch.Tensor,
    mask: torch.Tensor,
    clips: torch.Tensor,
    sizes: tuple[int, int, int],
) -> torch.Tensor:
    """
    What an encoder makes of the clips of a track, of which those that overlap share frames: each is computed once.

    Args:
        frames (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`): first those from the first frame
            of the first clip to the last of the last, then what else clips show.
        mask (`torch.Tensor` of shape `(batch, frames)`): 0 for a frame that shows no face.
        clips (`torch.LongTensor` of shape `(batch, clips, clip_length)`): where the frames of each clip are, -1 if it shows
            no face. An encoder that is configured to read tracks takes the clips that begin with every `hop`-th frame.
        sizes (`tuple[int, int, int]`): `clip_length`, frames of a clip; `stride`, from one of them to the next; `hop`, from
            the first frame of a clip to that of the next.

    Returns:
        `torch.FloatTensor` of shape `(batch, clips, size)`, 0 where a clip shows no face.
    """
    clip_length, stride, hop = sizes
    if getattr(encoder.config, "tracks", False):
        whole = (clips.shape[1] - 1) * hop + (clip_length - 1) * stride + 1
        features = _encode_whole(encoder, frames[:, :whole], mask[:, :whole], sizes)
    elif sees_pictures(encoder):
        pictures = encode_present(encoder, frames.unsqueeze(2), mask)
        features = _gather(pictures, clips).mean(dim=2)
    else:
        features = encoder.forward_frames(_gather(encoder.encode_frames(frames), clips).flatten(0, 1))
        features = features.unflatten(0, clips.shape[:2])
    return torch.where(clips[..., :1] < 0, 0, features)


def _gather(frames: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
    """Features of frames `(batch, frames, size)` to those of the frames of clips `(batch, clips, clip_length, size)`."""
    index = clips.clamp(min=0).flatten(1).unsqueeze(-1).expand(-1, -1, frames.shape[-1])
    return frames.gather(1, index).unflatten(1, clips.shape[1:])


def _encode_whole(encoder: PreTrainedModel, frames: torch.Tensor, mask: torch.Tensor, sizes: tuple) -> torch.Tensor:
    """The features of all clips that lie in a track, by an encoder that runs over it as one."""
    clip_length, stride, hop = sizes
    span = (clip_length - 1) * stride + 1
    num_clips = (frames.shape[1] - span) // hop + 1
    frames = torch.where(mask[:, :, None, None, None] == 0, 0, frames)  # zeros, as a convolution pads
    if not torch.compiler.is_compiling():  # nothing is to be seen behind the last clip that shows something
        shown = mask.any(dim=0).nonzero()
        frames = frames[:, : int(shown[-1]) + span if len(shown) else span]
    if stride == 1:
        features = encoder.forward_track(frames, clip_length, hop)
    else:  # every `stride`-th frame is a track of its own; one after the other, which needs less memory
        frames = F.pad(frames, (0, 0, 0, 0, 0, 0, 0, -frames.shape[1] % stride))
        tracks = [encoder.forward_track(frames[:, first::stride], clip_length, 1) for first in range(stride)]
        features = torch.stack(tracks, dim=2).flatten(1, 2)[:, ::hop]
    return F.pad(features, (0, 0, 0, max(0, num_clips - features.shape[1])))[:, :num_clips]


__all__ = [
    "TCN",
    "I3DModel",
    "R2Plus1DModel",
    "ResNetGRUModel",
    "build_encoder",
    "encode_present",
    "encode_track",
    "feature_size",
    "reads_tracks",
]
