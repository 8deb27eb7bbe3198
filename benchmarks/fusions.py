"""Fusions, forward and backward, on features: batched against one window at a time, and their growth with the window.

python benchmarks/fusions.py loop [--json FILE]         # the same mathematics, one sample at a time and batched
python benchmarks/fusions.py growth [--json FILE]       # every fusion at 8 to 256 clips
python benchmarks/fusions.py parameters [--json FILE]   # beside those of the authors' modules
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from measure import add_json, operations, print_table, product_peak, synchronize
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
    """The weights of a `JCAModel`, walked one window at a time, as the authors' code walks a batch."""

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
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
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


def step(model: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    out = model(**inputs)
    (out if isinstance(out, torch.Tensor) else out.logits).square().mean().backward()


def loop(device: str, batch: int) -> tuple[list[dict], list[str]]:
    rows = []
    for num_clips in (8, 16, 64):
        model = build("joint_cross_attention", num_clips, device)
        looped, inputs = LoopedJointCrossAttention(model), features(batch, num_clips, device)
        one, batched = seconds([partial(step, looped, inputs), partial(step, model, inputs)], device)
        difference = (looped(**inputs) - model(**inputs).logits).abs().max().item()
        row = {
            "clips": str(num_clips),  # text tells rows apart
            "one window at a time (ms)": round(one * 1e3, 1),
            "batched (ms)": round(batched * 1e3, 1),
            "batched / one at a time": round(batched / one, 3),
            "max difference": float(f"{difference:.0e}"),
        }
        rows.append(row)
    return rows, ["batched / one at a time"]


def growth(device: str, batch: int) -> tuple[list[dict], list[str]]:
    lengths, ratio = (8, 16, 64, 256), "16 clips, of concat's time"
    times, work, peak = {}, {}, product_peak(device=device)
    for num_clips in lengths:
        models, inputs = [build(fusion, num_clips, device) for fusion in FUSIONS], features(batch, num_clips, device)
        runs = [partial(step, model, inputs) for model in models]
        times[num_clips] = dict(zip(FUSIONS, seconds(runs, device, 5), strict=True))
        work[num_clips] = dict(zip(FUSIONS, map(operations, runs), strict=True))
    rows = []
    for fusion in FUSIONS:
        parameters = sum(p.numel() for p in build(fusion, 16, device).parameters() if p.requires_grad)
        cells = {f"{num_clips} clips (ms)": round(times[num_clips][fusion] * 1e3, 1) for num_clips in lengths}
        relative = round(times[16][fusion] / times[16]["concat"], 3)
        share = {"16 clips, of the peak": round(work[16][fusion] / times[16][fusion] / peak, 3)}
        rows.append({"fusion": fusion, "parameters at 16 clips": parameters, **cells, **share, ratio: relative})
    return rows, [ratio]


def parameters() -> list[dict]:
    rows, raw = [], {"head_input": "raw_video", "regressor_act": "linear"}
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
        rows.append({"the authors' module": name, "their parameters": theirs, "ours": ours})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("loop", "growth", "parameters"))
    parser.add_argument("--batch", type=int, default=64, help="windows (default: 64)")
    add_json(parser)
    arguments = parser.parse_args()
    if arguments.table == "parameters":
        print_table(parameters(), file=arguments.json)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, ratios = {"loop": loop, "growth": growth}[arguments.table](device, arguments.batch)
    gpu = torch.cuda.get_device_name() if device == "cuda" else "none"
    print_table(rows, {"GPU": gpu, "precision": "float32", "windows": arguments.batch}, arguments.json, ratios)


if __name__ == "__main__":
    main()
