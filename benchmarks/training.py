"""What training costs. Synthetic data.

python benchmarks/training.py loops [--json FILE]       # kept features against encoders in every step, one window at a time
python benchmarks/training.py processes [--json FILE]   # two processes against one: the same CCC, and the time
python benchmarks/training.py gpu [--json FILE]         # end to end in bf16: steps a second, memory, share of the peak
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from data import TINY
from datasets import Dataset, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from measure import add_json, operations, print_table, product_peak
from torch.utils.data import DataLoader

import jca
from jca.affwild2 import load_affwild2
from jca.evaluation import evaluate
from jca.features import _schema, extract_features
from jca.preparation import load_prepared, prepare
from jca.recipes import StageArguments
from jca.synthetic import make_synthetic
from jca.training import fit
from jca.windows import EpochSampler, MediaWindowDataset, WindowDataset
from modeling_jca import ccc_loss


def one_window_at_a_time(model: jca.JCAModel, windows: list[dict[str, torch.Tensor]]) -> None:
    """A step as the authors' code does it: each window alone through the frozen encoders and the fusion."""
    logits = []
    for window in windows:
        inputs = {name: x[None] for name, x in window.items() if name != "labels"}
        with torch.no_grad():
            video = model.get_video_features(inputs["pixel_values"], inputs["video_mask"])
            audio = model.get_audio_features(inputs["input_features"], inputs["audio_mask"])
        masks = {name: inputs[name] for name in ("video_mask", "audio_mask")}
        logits.append(model(video_features=video, audio_features=audio, **masks).logits)
    ccc_loss(torch.cat(logits), torch.stack([window["labels"] for window in windows])).backward()


def loops(file: Path | None, num_videos: int = 4, batch_size: int = 64) -> None:
    processor, hop, table = jca.JCAProcessor(), 8, []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_synthetic(root / "corpus", num_videos, 0)
        prepare({"train": load_affwild2(root / "corpus", "train")}, root / "prepared", processor, num_proc=2)
        rows = load_prepared(root / "prepared", "train")
        for name, encoders, timed in (("8 to 64 channels", TINY, 32), ("R(2+1)D-18 and ResNet-18", {}, 2)):
            torch.manual_seed(0)
            model = jca.JCAModel(jca.JCAConfig(**encoders))
            model.freeze_encoders()
            model.train()
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
            media = MediaWindowDataset(rows, processor, hop, every_phase=True)
            order = list(EpochSampler(media.rows))
            start = time.perf_counter()
            one_window_at_a_time(model, [media[index] for index in order[:timed]])
            optimizer.step()
            theirs = (time.perf_counter() - start) / timed
            few = rows if encoders else rows.select([0])  # the large encoders take minutes
            features = extract_features(few, model, processor, hop, root / "cache")
            windows = WindowDataset(features, processor, hop, every_phase=True)
            model.train()
            sampler = EpochSampler(windows.rows, 10 * batch_size)
            start = time.perf_counter()
            for batch in DataLoader(windows, batch_size, sampler=sampler):
                optimizer.zero_grad()
                model(**batch).loss.backward()
                optimizer.step()
            ours = (time.perf_counter() - start) / len(sampler)
            work = operations(lambda model=model, batch=batch: model(**batch).loss.backward()) / batch_size
            row = {
                "encoders": name,
                "windows": len(media),
                "seconds a window, encoders in every step": round(theirs, 3),
                "seconds a window, kept features": round(ours, 5),
                "of the peak": round(work / ours / product_peak(), 3),
                "kept features / encoders in every step": float(f"{ours / theirs:.2e}"),
            }
            table.append(row)
    print_table(table, file=file, ratios=["kept features / encoders in every step"])


def made_features(folder: Path, model: jca.JCAModel, processor: jca.JCAProcessor, num_videos: int, hop: int) -> Dataset:
    """Features in which valence and arousal are hidden, as files of [`extract_features`]."""
    rng, paths, num_frames = np.random.default_rng(0), [], 1800
    ends, times = np.unique(processor.plan(num_frames, hop)), np.arange(num_frames) / 30
    mixing = {modality: rng.standard_normal((2, getattr(model, f"{modality}_size"))) for modality in ("video", "audio")}
    for index in range(num_videos):
        phases, periods = rng.uniform(0, 6.28, (2, 3)), rng.uniform(3, 20, (2, 3))
        labels = np.sin(times[:, None, None] / periods * 6.28 + phases).mean(-1).astype(np.float32)
        row = {"video_id": str(index), "end_frames": ends, "times": times, "labels": labels}
        shown = labels[np.minimum(ends, num_frames - 1)]
        for modality, matrix in mixing.items():
            noise = 2 * rng.standard_normal((len(ends), matrix.shape[1]))
            row[f"{modality}_features"] = (shown @ matrix + noise).astype(np.float16)
            row[f"{modality}_mask"] = ends < num_frames
        path = folder / f"{num_videos}-{index}.arrow"
        with ArrowWriter(path=str(path), features=_schema(model)) as writer:
            writer.write(row)
            writer.finalize()
        paths.append(path)
    return concatenate_datasets([Dataset.from_file(str(path)) for path in paths])


def train_here(folder: Path, batch_size: int) -> None:
    """One process of [`processes`]: prints CCC and seconds."""
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [128], "depths": [1]}
    model = jca.JCAModel(
        jca.JCAConfig(
            video_config={**TINY["video_config"], **sizes, "stem_size": 1},
            audio_config={**TINY["audio_config"], **sizes},
            dropout=0.0,
        )
    )
    model.freeze_encoders()
    processor, hop, rank = jca.JCAProcessor(), 8, os.environ["RANK"]
    files = folder / f"features-{os.environ['WORLD_SIZE']}-{rank}"
    files.mkdir()
    train, held_out = (made_features(files, model, processor, count, hop) for count in (48, 12))
    arguments = StageArguments(learning_rate=1e-3, batch_size=batch_size, num_epochs=6, samples_per_epoch=3840)
    windows = WindowDataset(train, processor, hop, every_phase=True)
    start = time.perf_counter()
    result = fit(
        model,
        windows,
        lambda model, pictures: evaluate(model, held_out, processor, hop),
        arguments,
        folder / f"run-{os.environ['WORLD_SIZE']}",
        processor,
    )
    found = {"ccc": result["best"]["ccc"], "seconds": time.perf_counter() - start}
    (folder / f"result-{os.environ['WORLD_SIZE']}-{rank}.json").write_text(json.dumps(found))


def processes(file: Path | None) -> None:
    rows, first = [], None
    with tempfile.TemporaryDirectory() as folder:
        for world in (1, 2):
            command = [
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc_per_node={world}",
                __file__,
                "processes",
            ]
            root = str(Path(__file__).parents[1])
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": root}
            options = ["--folder", folder, "--batch_size", str(64 // world)]
            subprocess.run([sys.executable, *command, *options], env=environment, stderr=subprocess.DEVNULL, check=True)
            results = [json.loads(path.read_text()) for path in Path(folder).glob(f"result-{world}-*.json")]
            seconds = max(result["seconds"] for result in results)
            first = first or seconds
            row = {
                "processes": str(world),  # text tells rows apart
                "windows a step": 64,
                "CCC": round(results[0]["ccc"], 4),
                "seconds": round(seconds, 1),
                "of the first row's time": round(seconds / first, 3),
            }
            rows.append(row)
    print_table(rows, file=file, ratios=["of the first row's time"])


def gpu(file: Path | None, batch_size: int = 8, steps: int = 10) -> None:
    if not torch.cuda.is_available():
        sys.exit("no GPU: nothing was measured")
    device = torch.device("cuda")
    model = jca.JCAModel(jca.JCAConfig()).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
    batch = {
        "pixel_values": torch.randn(batch_size, 16, 8, 3, 112, 112, device=device),
        "input_features": torch.randn(batch_size, 16, 64, 107, device=device),
        "labels": torch.rand(batch_size, 16, 2, device=device),
    }

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    work = operations(step)
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / steps
    rate, peak = work / seconds, product_peak(torch.bfloat16, "cuda", 8192)
    memory = torch.cuda.max_memory_allocated() / 2**30
    row = {
        "windows a step": batch_size,
        "steps a second": round(1 / seconds, 2),
        "TFLOP/s": round(rate / 1e12, 1),
        "of a matrix product's": round(rate / peak, 3),
        "peak GiB": round(memory, 1),
    }
    print_table([row], {"GPU": torch.cuda.get_device_name()}, file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("loops", "processes", "gpu"))
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a process that this one started
    parser.add_argument("--batch_size", type=int, help=argparse.SUPPRESS)
    add_json(parser)
    arguments = parser.parse_args()
    if arguments.folder:
        train_here(arguments.folder, arguments.batch_size)
        return
    {"loops": loops, "processes": processes, "gpu": gpu}[arguments.what](arguments.json)


if __name__ == "__main__":
    main()
