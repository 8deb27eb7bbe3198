"""Fusions, forward and backward, on features: batched against one window at a time, and their growth with the window.

The loop does the same mathematics one sample at a time, as the authors' code walks a batch.
"""

import argparse
import platform
import time
from collections.abc import Callable

import torch
from torch import nn

import jca
from configuration_jca import FUSIONS


TINY = {
    "video_config": {"model_type": "r2plus1d", "hidden_sizes": [512], "depths": [1], "stem_size": 1},
    "audio_config": {
        "model_type": "resnet",
        "num_channels": 1,
        "embedding_size": 8,
        "hidden_sizes": [512],
        "depths": [1],
        "layer_type": "basic",
    },
}


class LoopedJointCrossAttention(nn.Module):
    """The weights of a `JCAModel`, walked one window at a time."""

    def __init__(self, model: jca.JCAModel):
        super().__init__()
        self.model = model

    def forward(self, video_features: torch.Tensor, audio_features: torch.Tensor) -> torch.Tensor:
        model, outputs = self.model, []
        for video, audio in zip(video_features, audio_features, strict=True):
            video, audio = model.video_projection(video), model.audio_projection(audio)
            joint = torch.cat([video, audio], dim=1)
            attended = []
            for x, part in ((video, model.fusion.video_attention), (audio, model.fusion.audio_attention)):
                correlation = torch.tanh(x.T @ part.joint(joint.T).T * part.scale)
                h = torch.relu(part.own(x.T) + part.correlated(correlation))
                attended.append(part.out(h).T + x)
            hidden = torch.cat(attended, dim=1)
            outputs.append(torch.cat([regressor(hidden) for regressor in model.regressors], dim=1))
        return torch.stack(outputs)


def seconds(runs: list[Callable[[], None]], device: str, repeats: int = 15) -> list[float]:
    """Least of the timings of each call; the calls take turns, so that all see the same state of the machine."""
    times = [[] for _ in runs]
    for _ in range(repeats + 1):
        for run, taken in zip(runs, times, strict=True):
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    return [min(taken[1:]) for taken in times]  # the first one warms up


def build(fusion: str, num_clips: int, device: str) -> jca.JCAModel:
    torch.manual_seed(0)
    model = jca.JCAModel(jca.JCAConfig(**TINY, fusion=fusion, num_clips=num_clips, dropout=0.0)).to(device)
    for modality in ("video", "audio"):
        getattr(model, f"{modality}_encoder").requires_grad_(False)
    return model


def features(batch: int, num_clips: int, device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{m}_features": torch.randn(batch, num_clips, 512, generator=generator).to(device) for m in ("video", "audio")
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="windows (default: 64)")
    batch = parser.parse_args().batch
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hardware = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, no GPU"
    print(
        f"{hardware}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32, batch of {batch} windows\n"
    )

    print("| clips | one window at a time (ms) | batched (ms) | ratio | max difference |\n|---|---|---|---|---|")
    for num_clips in (8, 16, 64):
        model = build("joint_cross_attention", num_clips, device)
        looped, inputs = LoopedJointCrossAttention(model), features(batch, num_clips, device)
        runs = [looped, lambda **inputs: model(**inputs).logits]  # noqa: B023
        loop, batched = seconds([lambda run=run: run(**inputs).square().mean().backward() for run in runs], device)  # noqa: B023
        difference = (looped(**inputs) - model(**inputs).logits).abs().max().item()
        print(f"| {num_clips} | {loop * 1e3:.1f} | {batched * 1e3:.1f} | {loop / batched:.1f} | {difference:.0e} |")

    print("\n| fusion | parameters at 16 clips | 8 clips (ms) | 16 | 64 | 256 |\n|---|---|---|---|---|---|")
    for fusion in FUSIONS:
        cells = []
        for num_clips in (8, 16, 64, 256):
            model, inputs = build(fusion, num_clips, device), features(batch, num_clips, device)
            (taken,) = seconds([lambda: model(**inputs).logits.square().mean().backward()], device, 5)  # noqa: B023
            cells.append(f"{taken * 1e3:.1f}")
        parameters = sum(p.numel() for p in build(fusion, 16, device).parameters() if p.requires_grad)
        print(f"| {fusion} | {parameters:,} | {' | '.join(cells)} |")

    print("\n| the authors' module | their parameters | ours |\n|---|---|---|")
    raw = {"head_input": "raw_video", "regressor_act": "linear"}
    dense = {"fusion": "dense_co_attention", "projection_size": None, "temporal": ["joint"]}
    spatial = {"video_config": {"model_type": "r2plus1d", "spatial_size": 7}}
    for name, theirs, changes in [
        ("cam.py, 8 clips, one output", 231_041, {"num_clips": 8, "id2label": {0: "valence"}, **raw}),
        ("cam.py, 16 clips", 314_626, raw),
        ("orig_cam.py", 8_586_323, {**dense, **spatial}),
    ]:
        with torch.device("meta"):
            model = jca.JCAModel(jca.JCAConfig(**changes))
        ours = sum(p.numel() for name, p in model.named_parameters() if "_encoder." not in name)
        print(f"| {name} | {theirs:,} | {ours:,} |")


if __name__ == "__main__":
    main()
