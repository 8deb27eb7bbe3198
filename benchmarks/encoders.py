"""What encoders cost with each way to run them, one thread on a CPU, and what that changes in their outputs.

python benchmarks/encoders.py speed [--json FILE]                  # ms a clip; random weights, crops of the synthetic corpus
python benchmarks/encoders.py ccc MODEL PREPARED VIDEO... [--json FILE]  # CCC on the validation split; int8 by the videos
"""

import argparse
import copy
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from data import hardware
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoProcessor

import jca
from jca.backends import calibration_clips, export, open_openvino, optimize, quantize, write_graph
from jca.evaluation import predict
from jca.features import extract_features
from jca.metrics import score
from jca.preparation import load_prepared
from jca.synthetic import make_synthetic


I3D = {"video_config": {"model_type": "i3d"}, "modalities": ["video"], "fusion": "concat"}
ENCODERS = {  # of a model: its configuration, the size of crops in pixels, the names of its encoders
    "R(2+1)D-18": ({}, 112, {"video": "R(2+1)D-18, 8 x 112²", "audio": "ResNet-18, 64 x 107"}),
    "I3D": (I3D, 112, {"video": "I3D, 8 x 112²"}),
    "I3D at 224": (I3D, 224, {"video": "I3D, 8 x 224²"}),
}
COMPILED = "PyTorch float32, torch.compile"


def paths(model: jca.JCAModel, processor: jca.JCAProcessor, folder: Path, videos: Sequence[Path]) -> dict:
    """The model in each way that it can be run here, by a name that says its precision."""
    export(model, processor, folder / "float32")
    export(model, processor, folder / "int8", videos)

    def load(precision: str, backend: str, dtype: str = "float32") -> jca.JCAModel:
        return AutoModel.from_pretrained(folder / precision, backend=backend, dtype=dtype)

    ways = {"PyTorch float32": model}
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


def seconds(runs: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Least processor time of each call; the calls take turns, so that all see the same state of the machine. On one thread
    it is what a quiet machine would take: the time of other programs is not in it."""
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            least[name] = min(least[name], time.process_time() - start)
    return least


@torch.no_grad()
def peaks(folder: Path, layers: int = 24, size: int = 1024) -> dict[str, float]:
    """Operations a second of products of two matrices in each precision: the better of PyTorch, one product, and OpenVINO, a
    chain of them as 1 x 1 convolutions, between which nothing leaves the precision."""
    x = torch.randn(size, size)
    half, byte = x.bfloat16(), x.clamp(-1, 1).mul(127).to(torch.int8)
    single = {"float32": lambda: x @ x, "bfloat16": lambda: half @ half, "int8": lambda: torch._int_mm(byte, byte)}
    chain, columns = nn.Sequential(), x[None, :, None]
    for _ in range(layers):
        chain.extend([nn.Conv2d(size, size, 1), nn.ReLU()])
    for name in ("float32", "int8"):
        write_graph(chain, (columns,), folder / f"{name}.onnx", ["x"], "y", (None,))
    quantize(folder / "int8.onnx", "x", columns)
    graphs = {"float32": ("float32", "float32"), "bfloat16": ("float32", "bfloat16"), "int8": ("int8", "float32")}
    chains = {
        name: partial(open_openvino(folder / f"{graph}.onnx", dtype)[0], columns)
        for name, (graph, dtype) in graphs.items()
    }
    single, chains = seconds(single), seconds(chains)
    return {name: 2 * size**3 * max(1 / single[name], layers / chains[name]) for name in graphs}


@torch.no_grad()
def random_model(config: dict, clips: dict[str, torch.Tensor]) -> jca.JCAModel:
    """Random weights, with the statistics of these clips in the batch normalisation."""
    torch.manual_seed(0)
    model = jca.JCAModel(jca.JCAConfig(**config))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    model.train()
    for modality, x in clips.items():
        getattr(model, f"get_{modality}_features")(x[None, :8])
    return model.eval()


@torch.no_grad()
def speed(num_clips: int = 4) -> dict:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        reached = peaks(Path(folder))
        corpus = make_synthetic(Path(folder) / "corpus", num_train=2, num_validation=0, num_proc=1)
        seen, unseen = sorted((corpus / "batch1").glob("*.mp4"))
        for number, (config, size, encoders) in enumerate(ENCODERS.values()):
            processor = jca.JCAProcessor(video_processor=jca.JCAVideoProcessor(size=size, faces="center"))
            model = random_model(config, calibration_clips(processor, [seen], list(encoders)))
            ways = paths(model, processor, Path(folder) / str(number), [seen])
            clips = calibration_clips(processor, [unseen], list(encoders))
            for modality, encoder in encoders.items():
                inputs = clips[modality][None, :num_clips]
                runs = {way: partial(getattr(m, f"get_{modality}_features"), inputs) for way, m in ways.items()}
                with FlopCounterMode(display=False) as counter:
                    plain = runs["PyTorch float32"]()
                operations, times = counter.get_total_flops() / num_clips, seconds(runs)
                for way, taken in times.items():
                    precision = next(name for name in reached if name in way)
                    difference = (runs[way]() - plain).abs() / plain.square().mean().sqrt()
                    rows.append(
                        {
                            "encoder": encoder,
                            "path": way,
                            "ms a clip": round(1000 * taken / num_clips, 2),
                            "ratio": round(taken / times["PyTorch float32"], 3),
                            "of the peak": round(operations * num_clips / taken / reached[precision], 3),
                            "mean difference": float(f"{difference.mean():.1e}"),
                            "max difference": float(f"{difference.max():.1e}"),
                        }
                    )
                if COMPILED not in times:
                    rows.append({**dict.fromkeys(rows[-1], ""), "encoder": encoder, "path": COMPILED})
                    rows[-1]["ms a clip"] = "not measured: no g++"
    gigas = {f"peak, {name} (GOP/s)": round(value / 1e9) for name, value in reached.items()}
    return {"hardware": hardware(), "clips at once": num_clips, **gigas, "rows": rows}


def ccc(source: str, data: Path, videos: Sequence[Path], hop: int = 8) -> dict:
    model, processor = AutoModel.from_pretrained(source), AutoProcessor.from_pretrained(source)
    names, rows, dataset = list(model.config.id2label.values()), [], load_prepared(data, "validation")
    with tempfile.TemporaryDirectory() as folder:
        for way, fast in paths(model, processor, Path(folder), videos).items():
            features = extract_features(dataset, fast, processor, hop, Path(folder) / "features")
            outputs = predict(fast, features, processor, hop)
            result = score(outputs, list(features.with_format("numpy")["labels"]), names)
            rows.append({"path": way, **{name: round(result[f"ccc_{name}"], 4) for name in names}})
            rows[-1]["mean"] = round(result["ccc"], 4)
    return {"hardware": hardware(), "model": str(source), "videos to calibrate with": len(videos), "rows": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("speed", "ccc"))
    parser.add_argument("arguments", nargs="*", type=Path, help="of ccc: MODEL PREPARED VIDEO...")
    parser.add_argument("--json", type=Path, help="file to write the same to")
    arguments = parser.parse_args()
    if arguments.table == "ccc" and len(arguments.arguments) < 3:
        parser.error("ccc needs MODEL PREPARED VIDEO...")
    torch.set_num_threads(1)
    if arguments.table == "speed":
        result = speed()
    else:
        source, data, *videos = arguments.arguments
        result = ccc(str(source), data, videos)
    print("; ".join(f"{name}: {value}" for name, value in result.items() if name != "rows") + "\n")
    columns = list(result["rows"][0])
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for row in result["rows"]:
        print(f"| {' | '.join(str(value) for value in row.values())} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
