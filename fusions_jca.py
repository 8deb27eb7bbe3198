"""Fusions of face and voice, each one class with its equation, and what stands around them.

A fusion takes video and audio `(batch, clips, dim)` and their masks `(batch, clips, 1)`, 1 where the modality is there,
and returns both, attended and of the same shape, and a correlation map for each, or None. What is masked is zero.
In the equations features are columns, `X ∈ R^{dim x L}` of `L` clips; in the code they are rows.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


try:  # copied next to the weights: part of a `transformers_modules.*` package
    from .configuration_jca import JCAConfig
    from .encoders_jca import TCN, init_convolution_weights
except ImportError:  # installed or on sys.path: a top-level module
    from configuration_jca import JCAConfig
    from encoders_jca import TCN, init_convolution_weights


# video and audio `(batch, clips, dim)`, their maps
Fused = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]
GATE_TEMPERATURE = 0.1  # authors' code of dynamic cross-attention (arXiv 2403.19554)


class ConcatFusion(nn.Module):
    """No attention: the regressors read both features side by side. Maps: none."""

    def __init__(self, config: JCAConfig, size: int):
        super().__init__()

    def forward(
        self, video: torch.Tensor, audio: torch.Tensor, video_mask: torch.Tensor, audio_mask: torch.Tensor
    ) -> Fused:
        """
        What every fusion takes and gives.

        Args:
            video, audio (`torch.FloatTensor` of shape `(batch, clips, size)`): features of clips, 0 where they are masked.
            video_mask, audio_mask (`torch.FloatTensor` of shape `(batch, clips, 1)`): 1 where the modality is there.

        Returns:
            video and audio attended, `(batch, clips, size)` each, and a correlation map of each or None, see its class.
        """
        return video, audio, None, None


class CrossAttentionFusion(nn.Module):
    r"""
    Cross-attention (Rajasekhar et al., FG 2021; the authors' slides p. 41-45).

    `Z = X_aᵀ W X_v`; `A_a`, `A_v` are the column-wise softmax of `Z / T`, `Zᵀ / T`; `X̂_a = X_a A_a`, `X̂_v = X_v A_v`;
    `X_att = tanh(X + X̂)`. The authors' code differs: no temperature, no residual, no tanh, and the attended features
    are summed and pooled over time. Maps: `(batch, clips, clips)`, entry (i, j) the weight of clip i in what is added to
    clip j.
    """

    def __init__(self, config: JCAConfig, size: int):
        super().__init__()
        self.temperature = config.temperature
        self.correlation = nn.Linear(size, size, bias=False)  # W

    def forward(
        self, video: torch.Tensor, audio: torch.Tensor, video_mask: torch.Tensor, audio_mask: torch.Tensor
    ) -> Fused:
        """See [`ConcatFusion.forward`]."""
        scores = audio @ self.correlation(video).mT / self.temperature  # Z / T: (batch, audio clips, video clips)
        lowest = torch.finfo(scores.dtype).min  # a clip that is not there is not attended to
        audio_map = scores.masked_fill(audio_mask == 0, lowest).softmax(dim=1)
        video_map = scores.mT.masked_fill(video_mask == 0, lowest).softmax(dim=1)
        return (video + video_map.mT @ video).tanh(), (audio + audio_map.mT @ audio).tanh(), video_map, audio_map


class JointCrossAttention(nn.Module):
    r"""
    One modality's half of joint cross-attention (arXiv 2203.14779; the authors' slides p. 38-41).

    With the joint `J = [X_v; X_a]` and `d` its width, stored as rows of clips:

    ```
    C     = tanh(Xᵀ W_j J / sqrt(d))      W_j: L x L, over the clips     (dim, d)
    H     = ReLU(W X + W_c C)             W: k x L,  W_c: k x d          (dim, k)
    X_att = W_h H + X                     W_h: L x k                     (L, dim)
    ```

    This is the reading of the authors' code (`cam.py`), in which the map correlates features, the clips are contracted
    and the weights are made for one `L`. Their code puts audio first in `J`, which is a permutation of the columns of W_c.
    """

    def __init__(self, config: JCAConfig, size: int):
        super().__init__()
        clips, attention_size = config.num_clips, config.attention_size
        self.scale = (2 * size) ** -0.5
        self.joint = nn.Linear(clips, clips, bias=False)  # W_j
        self.own = nn.Linear(clips, attention_size, bias=False)  # W
        self.correlated = nn.Linear(2 * size, attention_size, bias=False)  # W_c
        self.out = nn.Linear(attention_size, clips, bias=False)  # W_h

    def forward(self, features: torch.Tensor, joint: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            features (`torch.FloatTensor` of shape `(batch, clips, dim)`): X.
            joint (`torch.FloatTensor` of shape `(batch, clips, 2 * dim)`): J.

        Returns:
            X_att `(batch, clips, dim)` and C `(batch, dim, 2 * dim)`.
        """
        # the map is the largest thing here: scaled before the product and in place after it, it is written once
        correlation = ((features * self.scale).mT @ self.joint(joint.mT).mT).tanh_()
        attention = (self.own(features.mT) + self.correlated(correlation)).relu()
        return self.out(attention).mT + features, correlation


class JointCrossAttentionFusion(nn.Module):
    """Joint cross-attention of both modalities, see [`JointCrossAttention`]. Maps: `(batch, dim, 2 * dim)`, a feature of
    the modality against the features `[video; audio]` of the joint representation."""

    def __init__(self, config: JCAConfig, size: int):
        super().__init__()
        self.num_clips = config.num_clips
        self.video_attention = JointCrossAttention(config, size)
        self.audio_attention = JointCrossAttention(config, size)

    def forward(
        self, video: torch.Tensor, audio: torch.Tensor, video_mask: torch.Tensor, audio_mask: torch.Tensor
    ) -> Fused:
        """See [`ConcatFusion.forward`]. Raises a ValueError for windows of another length than `config.num_clips`."""
        check_window(video, self.num_clips, "joint_cross_attention")
        joint = torch.cat([video, audio], dim=-1)
        video, video_map = self.video_attention(video, joint)
        audio, audio_map = self.audio_attention(audio, joint)
        return video, audio, video_map, audio_map


class DenseCoAttention(nn.Module):
    r"""
    One modality's half of dense co-attention (the authors' second repository, `orig_cam.py`; no paper prints it).

    With the projected joint `Q = W_q [X_v; X_a] + b` of both modalities and `d` its width:

    ```
    S     = dropout(tanh((X W_k) Q / sqrt(d)))      W_k: L x L, over the clips     (dim, d)
    Y     = ReLU(tanh((W_v X) S))                   W_v: dim x dim                 (L, d)
    X_att = X + dropout(ReLU(W_o Y))                W_o: dim x d                   (L, dim)
    ```

    Against the paper's equations: keys and the joint are both projected, scores multiply values instead of being added
    to them, tanh and ReLU follow each other, every layer has a bias.
    """

    def __init__(self, config: JCAConfig, size: int):
        super().__init__()
        self.scale = (2 * size) ** -0.5
        self.key = nn.Linear(config.num_clips, config.num_clips)
        self.value = nn.Linear(size, size)
        self.out = nn.Linear(2 * size, size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: torch.Tensor, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            features (`torch.FloatTensor` of shape `(batch, clips, dim)`): X.
            query (`torch.FloatTensor` of shape `(batch, clips, 2 * dim)`): Q.

        Returns:
            X_att `(batch, clips, dim)` and S before its dropout, `(batch, dim, 2 * dim)`.
        """
        scores = ((self.key(features.mT) * self.scale) @ query).tanh_()
        attended = (self.value(features) @ self.dropout(scores)).tanh().relu()
        return features + self.dropout(self.out(attended).relu()), scores


class DenseCoAttentionFusion(nn.Module):
    """Dense co-attention of both modalities, see [`DenseCoAttention`]. Maps: `(batch, dim, 2 * dim)`."""

    def __init__(self, config: JCAConfig, size: int):
        super().__init__()
        self.num_clips = config.num_clips
        self.query = nn.Linear(2 * size, 2 * size)
        self.video_attention = DenseCoAttention(config, size)
        self.audio_attention = DenseCoAttention(config, size)

    def forward(
        self, video: torch.Tensor, audio: torch.Tensor, video_mask: torch.Tensor, audio_mask: torch.Tensor
    ) -> Fused:
        """See [`ConcatFusion.forward`]. Raises a ValueError for windows of another length than `config.num_clips`."""
        check_window(video, self.num_clips, "dense_co_attention")
        query = self.query(torch.cat([video, audio], dim=-1))
        video, video_map = self.video_attention(video, query)
        audio, audio_map = self.audio_attention(audio, query)
        return video, audio, video_map, audio_map


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as Transformers' interface asks for it: `(batch, heads, clips, dim)` to `(batch, clips, heads, dim)`."""
    weights = query @ key.mT * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.dropout(weights.softmax(dim=-1), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class CrossModalLayer(nn.Module):
    """A pre-norm Transformer layer in which one modality asks and the other answers."""

    def __init__(self, config: JCAConfig, size: int):
        super().__init__()
        if size % config.num_attention_heads:
            raise ValueError(
                f"fusion='transformer' splits the width {size} among num_attention_heads={config.num_attention_heads}: "
                "choose a number of heads that divides it."
            )
        self.config = config
        self.head_size = size // config.num_attention_heads
        self.is_causal = False
        self.norm, self.other_norm, self.out_norm = (nn.LayerNorm(size) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(
        self, features: torch.Tensor, other: torch.Tensor, other_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        def heads(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

        other = self.other_norm(other)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        # additive and not boolean: where the other modality is missing altogether the softmax must stay finite
        mask = (1 - other_mask.mT.unsqueeze(1)) * torch.finfo(features.dtype).min
        attended, weights = attention(
            self,
            heads(self.query(self.norm(features))),
            heads(self.key(other)),
            heads(self.value(other)),
            mask.expand(-1, -1, features.shape[1], -1),
            scaling=self.head_size**-0.5,
            dropout=0.0,
        )
        features = features + self.out(attended.flatten(-2))
        return features + self.fc2(F.gelu(self.fc1(self.out_norm(features)))), weights


class TransformerFusion(nn.Module):
    """A baseline of today: bidirectional cross-modal attention, for windows of any length, through Transformers'
    attention interface. Maps: `(batch, heads, clips, clips)`, with `attn_implementation="eager"` alone."""

    def __init__(self, config: JCAConfig, size: int):
        super().__init__()
        self.video_attention = CrossModalLayer(config, size)
        self.audio_attention = CrossModalLayer(config, size)

    def forward(
        self, video: torch.Tensor, audio: torch.Tensor, video_mask: torch.Tensor, audio_mask: torch.Tensor
    ) -> Fused:
        """See [`ConcatFusion.forward`]."""
        attended_video, video_map = self.video_attention(video, audio, audio_mask)
        attended_audio, audio_map = self.audio_attention(audio, video, video_mask)
        return attended_video, attended_audio, video_map, audio_map


FUSION_CLASSES = {
    "concat": ConcatFusion,
    "cross_attention": CrossAttentionFusion,
    "joint_cross_attention": JointCrossAttentionFusion,
    "dense_co_attention": DenseCoAttentionFusion,
    "transformer": TransformerFusion,
}


def check_window(features: torch.Tensor, num_clips: int, fusion: str) -> None:
    """Raises ValueError where a window has not as many clips as the weights mix."""
    if features.shape[1] != num_clips:
        raise ValueError(
            f"The window has {features.shape[1]} clips, and the weights of {fusion} mix {num_clips} (config.num_clips). "
            f"Give windows of {num_clips} clips, masked where there is no clip, or train a model with that num_clips; "
            "concat, cross_attention and transformer take any length."
        )


# Around the fusion ----------------------------------------------------------------------------------------------------


class GatedResidual(nn.Module):
    r"""
    Weighs what a fusion made of a modality against what it was given: `ReLU(g_0 X + g_1 X_att)` with
    `g = softmax(W X_att / 0.1)` for each clip.

    Gate, temperature and ReLU are those of the authors' code for dynamic cross-attention (arXiv 2403.19554). That the
    gate reads the attended feature, and that it stands in every step of the recursion (as gated recursive joint
    cross-attention, arXiv 2503.12261, is described), is our reading: no equations of either could be read.
    """

    def __init__(self, size: int):
        super().__init__()
        self.gate = nn.Linear(size, 2)

    def forward(self, features: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """`features` `(batch, clips, size)` and `attended` `(batch, clips, size)` to `(batch, clips, size)`."""
        gate = (self.gate(attended) / GATE_TEMPERATURE).softmax(dim=-1)
        return (gate[..., :1] * features + gate[..., 1:] * attended).relu()


class BidirectionalLSTM(nn.Module):
    """
    Two bidirectional LSTM layers beside their input, projected and normalised: `(batch, clips, in)` to `(batch, clips,
    out)`. The U-BLSTM and J-BLSTM of recursive joint attention (ICASSP 2023) as the authors' code has them: the initial
    states are learnt, the output is `normalise(W [input; LSTM(input)] + b)`; `dropout`, in [0, 1], between the layers.
    """

    def __init__(self, in_size: int, out_size: int, dropout: float = 0.0):
        super().__init__()
        self.rnn = nn.LSTM(in_size, out_size // 2, 2, batch_first=True, bidirectional=True, dropout=dropout)
        self.init_hidden = nn.Parameter(torch.zeros(8, out_size // 2))  # hidden states of 2 x 2 directions, then cells
        self.linear = nn.Linear(in_size + 2 * (out_size // 2), out_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        state = self.init_hidden.unsqueeze(1).expand(-1, features.shape[0], -1)
        out, _ = self.rnn(features, (state[:4].contiguous(), state[4:].contiguous()))
        return F.normalize(self.linear(torch.cat([features, out], dim=-1)), dim=-1)


class CausalTCN(TCN):
    """
    A TCN over the clips of a window of any length: `(batch, clips, in)` to `(batch, clips, out)`. Four levels, a kernel of 5
    and the dropout are those of RJCMA's code (CVPRW 2024). A clip sees itself and the 120 before it.
    """

    def __init__(self, in_size: int, out_size: int, dropout: float = 0.1):
        super().__init__([in_size, *[out_size] * 4], kernel_size=5, dropout=dropout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features.mT).mT


TEMPORAL_CLASSES = {"lstm": BidirectionalLSTM, "tcn": CausalTCN}


class SpatialAttention(nn.Module):
    r"""
    Audio-guided attention over the positions of a visual map, `(batch, clips, channels * positions)` to `(batch, clips,
    channels)` (the authors' second repository, `audguide_att.py`).

    `z = w_h tanh(W_v ReLU(U_v V) + W_g ReLU(U_a a))`, `α = softmax(z)` over the positions, out `= U_f α V`.

    The features are flattened channels first. The authors' code views them as positions first, so that each of its
    "positions" mixes channels and places; weights trained so need `scrambled=True` to give what they gave.
    """

    def __init__(self, channels: int, positions: int, audio_size: int, scrambled: bool):
        super().__init__()
        self.channels, self.positions, self.scrambled = channels, positions, scrambled
        self.video = nn.Linear(channels, channels)  # U_v
        self.audio = nn.Linear(audio_size, channels)  # U_a
        self.video_score = nn.Linear(channels, positions, bias=False)  # W_v
        self.audio_score = nn.Linear(channels, positions, bias=False)  # W_g
        self.score = nn.Linear(positions, 1, bias=False)  # w_h
        self.out = nn.Linear(channels, channels)  # U_f

    def forward(self, video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """
        Args:
            video (`torch.FloatTensor` of shape `(batch, clips, channels * positions)`): V, a flattened map for each clip.
            audio (`torch.FloatTensor` of shape `(batch, clips, audio_size)`): a.

        Returns:
            `torch.FloatTensor` of shape `(batch, clips, channels)`.
        """
        if self.scrambled:
            places = video.unflatten(-1, (self.positions, self.channels))
        else:
            places = video.unflatten(-1, (self.channels, self.positions)).mT
        seen, heard = self.video(places).relu(), self.audio(audio).relu()
        score = self.score((self.video_score(seen) + self.audio_score(heard).unsqueeze(-1)).tanh())
        weights = score.softmax(dim=-2)  # (batch, clips, positions, 1)
        return self.out((weights * places).sum(dim=-2))


@torch.no_grad()
def init_fusion_weights(module: nn.Module) -> None:
    """Xavier, as the authors initialise their linear layers, states of LSTMs drawn small, and TCNs as in an encoder."""
    init_convolution_weights(module)
    if isinstance(module, nn.Linear):
        init.xavier_uniform_(module.weight)
    elif isinstance(module, BidirectionalLSTM):
        init.normal_(module.init_hidden, std=0.02)


__all__ = ["FUSION_CLASSES", "TEMPORAL_CLASSES", "GatedResidual", "SpatialAttention", "init_fusion_weights"]
