"""What encoders cost with each way to run them, one thread on a CPU, and what that changes in their outputs.

python benchmarks/encoders.py speed [--json FILE]                  # ms a clip; random weights, crops of the synthetic corpus
python benchmarks/encoders.py ccc MODEL PREPARED VIDEO... [--json FILE]  # CCC on the validation split; int8 by the videos
"""

import argparse
import copy
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from measure import add_json, operations, peaks, print_table, seconds
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor

import jca
from encoders_jca import TimeConv
from jca.backends import calibration_clips, export, optimize
from jca.evaluation import predict
from jca.features import extract_features
from jca.metrics import score
from jca.preparation import load_prepared
from jca.synthetic import make_synthetic


R2PLUS1D, I3D = {"model_type": "r2plus1d"}, {"model_type": "i3d"}
MOBILE = {  # of recipes/affwild2_mobile.yaml
    "model_type": "resnet",
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 128, 256],
    "depths": [2, 2, 2, 2],
    "layer_type": "basic",
}
ENCODERS = [  # of a model: the visual encoder's configuration, the size of crops in pixels, the names of its encoders
    (R2PLUS1D, 112, {"video": "R(2+1)D-18, 8 x 112²", "audio": "ResNet-18, 64 x 107"}),
    (I3D, 112, {"video": "I3D, 8 x 112²"}),
    (I3D, 224, {"video": "I3D, 8 x 224²"}),
    (MOBILE, 112, {"video": "ResNet-18 of half the width, 8 x 112²"}),
]
PLAIN = "PyTorch float32"
CONV3D = "PyTorch float32, Conv3d over time"
COMPILED = "PyTorch float32, torch.compile"
HOP = 8
TRACKS = f"tracks at hop {HOP}"


class Conv3d(TimeConv):
    """The same convolution as PyTorch's own 3-D one."""

    def forward(self, hidden_states: torch.Tensor, stride: int | None = None, padding: int = 1) -> torch.Tensor:
        strides = (stride or self.stride[0], 1, 1)
        return F.conv3d(hidden_states, self.weight, self.bias, strides, (padding, 0, 0))


def as_conv3d(model: jca.JCAModel) -> jca.JCAModel:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, TimeConv):
            module.__class__ = Conv3d
    return model


def paths(model: jca.JCAModel, processor: jca.JCAProcessor, folder: Path, videos: Sequence[Path]) -> dict:
    """The model in each way that it can be run here, by a name that says its precision."""
    export(model, processor, folder / "float32")
    export(model, processor, folder / "int8", videos)

    def load(precision: str, backend: str, dtype: str = "float32") -> jca.JCAModel:
        return AutoModel.from_pretrained(folder / precision, backend=backend, dtype=dtype)

    ways = {PLAIN: model}
    if model.config.video_config.model_type == "r2plus1d":
        ways[CONV3D] = as_conv3d(model)
    if shutil.which("g++"):  # without which Inductor has nothing to compile with
        ways[COMPILED] = copy.deepcopy(model)
        for modality in model.config.modalities:
            getattr(ways[COMPILED], f"{modality}_encoder").compile()
    return ways | {
        "PyTorch float32, optimize": optimize(model, processor, "float32"),
        "PyTorch bfloat16, optimize": optimize(model, processor, "bfloat16"),
        "ONNX Runtime float32": load("float32", "onnx"),
        "ONNX Runtime int8": load("int8", "onnx"),
        "OpenVINO float32": load("float32", "openvino"),
        "OpenVINO bfloat16": load("float32", "openvino", "bfloat16"),
        "OpenVINO int8": load("int8", "openvino"),
    }


@torch.no_grad()
def random_model(video_config: dict, clips: dict[str, torch.Tensor]) -> jca.JCAModel:
    """Random weights, with the statistics of these clips in the batch normalisation."""
    torch.manual_seed(0)
    one = {} if "audio" in clips else {"modalities": ["video"], "fusion": "concat"}
    model = jca.JCAModel(jca.JCAConfig(video_config=video_config, **one))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    model.train()
    for modality, x in clips.items():
        getattr(model, f"get_{modality}_features")(x[None, :8])
    return model.eval()


def track_runs(model: jca.JCAModel, processor: jca.JCAProcessor, video: Path) -> tuple[dict[str, Callable], int]:
    """The visual encoder over a block of a video as one track, and the number of its clips."""
    config = model.config.to_dict()
    if "tracks" in config["video_config"]:
        config["video_config"]["tracks"] = True
    tracks = jca.JCAModel(jca.JCAConfig(**config)).eval()
    tracks.load_state_dict(model.state_dict())
    ways = {PLAIN: tracks, "PyTorch bfloat16, optimize": optimize(tracks, processor, "bfloat16")}
    block = next(processor.windows(str(video), hop=HOP, tracks=True))
    inputs, sizes = processor.inputs(block), processor.track_sizes(HOP)
    track = [inputs[name] for name in ("pixel_values", "frame_mask", "clip_frames")]
    runs = {f"{way}, {TRACKS}": partial(m.get_track_features, *track, sizes) for way, m in ways.items()}
    return runs, len(block["end_frames"])


@torch.no_grad()
def speed(num_clips: int = 4) -> tuple[list[dict], dict]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        reached = peaks(Path(folder))
        corpus = make_synthetic(Path(folder) / "corpus", num_train=2, num_validation=0, num_proc=1)
        seen, unseen = sorted((corpus / "batch1").glob("*.mp4"))
        for number, (config, size, encoders) in enumerate(ENCODERS):
            processor = jca.JCAProcessor(video_processor=jca.JCAVideoProcessor(size=size, faces="center"))
            model = random_model(config, calibration_clips(processor, [seen], list(encoders)))
            ways = paths(model, processor, Path(folder) / str(number), [seen])
            clips = calibration_clips(processor, [unseen], list(encoders))
            for modality, encoder in encoders.items():
                inputs = clips[modality][None, :num_clips]
                runs = {
                    way: partial(getattr(m, f"get_{modality}_features"), inputs)
                    for way, m in ways.items()
                    if modality == "video" or way != CONV3D
                }
                plain = runs[PLAIN]()
                differences = {way: (run() - plain).abs() / plain.square().mean().sqrt() for way, run in runs.items()}
                counts = dict.fromkeys(runs, num_clips)
                if modality == "video" and size == 112:
                    tracks, count = track_runs(model, processor, unseen)
                    runs, counts = runs | tracks, counts | dict.fromkeys(tracks, count)
                times, work = seconds(runs), {}
                for way in (PLAIN, f"{PLAIN}, {TRACKS}"):
                    if way in runs:
                        work["tracks" in way] = operations(runs[way]) / counts[way]
                for way, taken in times.items():
                    precision, taken = next(name for name in reached if name in way), taken / counts[way]
                    row = {
                        "encoder": encoder,
                        "path": way,
                        "ms a clip": round(1000 * taken, 2),
                        "ratio": round(taken / times[PLAIN] * num_clips, 3),
                        "of the peak": round(work["tracks" in way] / taken / reached[precision], 3),
                        "mean difference": "",
                        "max difference": "",
                    }
                    if way in differences:
                        row["mean difference"] = f"{differences[way].mean():.1e}"
                        row["max difference"] = f"{differences[way].max():.1e}"
                    rows.append(row)
                if COMPILED not in times:
                    rows.append({**dict.fromkeys(rows[-1], ""), "encoder": encoder, "path": COMPILED})
                    rows[-1]["ms a clip"] = "not measured: no g++"
    gigas = {f"peak, {name} (GOP/s)": round(value / 1e9) for name, value in reached.items()}
    return rows, {"clips at once": num_clips, **gigas}


def ccc(source: str, data: Path, videos: Sequence[Path]) -> tuple[list[dict], dict]:
    model, processor = AutoModel.from_pretrained(source), AutoProcessor.from_pretrained(source)
    names, rows, dataset = list(model.config.id2label.values()), [], load_prepared(data, "validation")
    with tempfile.TemporaryDirectory() as folder:
        for way, fast in paths(model, processor, Path(folder), videos).items():
            features = extract_features(dataset, fast, processor, HOP, Path(folder) / "features")
            outputs = predict(fast, features, processor, HOP)
            result = score(outputs, list(features.with_format("numpy")["labels"]), names)
            rows.append({"path": way, **{name: round(result[f"ccc_{name}"], 4) for name in names}})
            rows[-1]["mean"] = round(result["ccc"], 4)
    return rows, {"model": str(source), "videos to calibrate with": len(videos)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("speed", "ccc"))
    parser.add_argument("arguments", nargs="*", type=Path, help="of ccc: MODEL PREPARED VIDEO...")
    add_json(parser)
    arguments = parser.parse_args()
    if arguments.table == "ccc" and len(arguments.arguments) < 3:
        parser.error("ccc needs MODEL PREPARED VIDEO...")
    torch.set_num_threads(1)
    if arguments.table == "speed":
        rows, about = speed()
    else:
        source, data, *videos = arguments.arguments
        rows, about = ccc(str(source), data, videos)
    print_table(rows, about, arguments.json, ratios=["ratio"] if arguments.table == "speed" else [])


if __name__ == "__main__":
    main()
