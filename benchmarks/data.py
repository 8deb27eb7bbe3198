"""What data costs: listing a release, extracting features, an epoch over them. Synthetic files of the real one's size.

python benchmarks/data.py listing [--json FILE]      # 594 annotations of 5,000 frames
python benchmarks/data.py extraction [--json FILE]   # time outside the encoders, two processes against one
python benchmarks/data.py epoch [--json FILE]        # 356 videos, 2.0 M frames, features at hop 4
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from measure import add_json, operations, print_table, product_peak, timed

import jca
from jca.affwild2 import ANNOTATIONS, FOLDERS, load_affwild2
from jca.features import _schema, extract_features
from jca.preparation import load_prepared, prepare
from jca.recipes import StageArguments
from jca.synthetic import make_synthetic
from jca.windows import EpochSampler, WindowBatch, WindowDataset


VIDEOS = {"train": 356, "validation": 76, "test": 162}  # of ABAW 5 to 8
TINY = {
    "video_config": {"model_type": "r2plus1d", "stem_size": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]},
    "audio_config": {
        "model_type": "resnet",
        "num_channels": 1,
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 32, 64],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
    },
}


def memory() -> dict[str, float]:
    """MiB of this process now: its own, and pages of files that the system may take back at any time."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


def listing(file: Path | None, num_frames: int = 5000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "batch1").mkdir()
        with av.open(str(root / "batch1/video0.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
            stream.width = stream.height = 16
            stream.pix_fmt = "yuv420p"
            for index in range(num_frames):
                frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
                frame.pts = index
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        rng, number = np.random.default_rng(0), 0
        names = {}
        for split, count in VIDEOS.items():
            names[split] = [f"video{number + index}" for index in range(count)]
            number += count
            for name in names[split]:
                if name != "video0":
                    os.link(root / "batch1/video0.mp4", root / f"batch1/{name}.mp4")
                (root / "cropped_aligned" / name).mkdir(parents=True)
        for split, part in FOLDERS.items():
            (root / ANNOTATIONS / part).mkdir(parents=True)
            for name in names[split]:
                labels = rng.uniform(-1, 1, (num_frames, 2))
                lines = "\n".join(f"{v:.3f},{a:.3f}" for v, a in labels)
                (root / ANNOTATIONS / part / f"{name}.txt").write_text(f"valence,arousal\n{lines}\n")
        tests = root / "names_of_videos_in_each_test_set"
        tests.mkdir()
        (tests / "Valence_Arousal_Estimation_Challenge_test_set_release.txt").write_text("\n".join(names["test"]))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start, frames = time.perf_counter(), 0
        for split in VIDEOS:
            frames += sum(load_affwild2(root, split)["num_frames"])
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = {
        "videos": number,
        "frames": frames,
        "seconds": round(seconds, 1),
        "peak memory (MiB)": round(peak),
        "of it before the listing, imports above all": round(before),
    }
    print_table([row], file=file)


def extraction(file: Path | None, num_videos: int = 8) -> None:
    rows, first = [], None
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        corpus = make_synthetic(root / "corpus", num_videos, 0)
        prepare({"train": load_affwild2(corpus, "train")}, root / "prepared", jca.JCAProcessor(), num_proc=2)
        for processes, workers in ((1, 0), (2, 0), (1, 1)):
            command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", __file__]
            options = ["--folder", str(root), "--num_workers", str(workers)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
            environment["PYTHONPATH"] = str(Path(__file__).parents[1])
            run = subprocess.run(
                [sys.executable, *command, "extraction", *options], env=environment, stdout=subprocess.PIPE, check=True
            )
            results = [json.loads(line) for line in run.stdout.splitlines() if line.startswith(b"{")]
            seconds = max(result["seconds"] for result in results)
            inside = sum(result["inside"] for result in results) / sum(result["seconds"] for result in results)
            first = first or seconds
            row = {
                "processes": str(processes),  # text tells rows apart
                "that read ahead": str(workers),
                "seconds": round(seconds, 1),
                "clips a second": round(results[0]["clips"] / seconds),
                "outside the encoders": round(1 - inside, 3),
                "of the peak, inside them": round(sum(r["of the peak"] for r in results) / processes, 3),
                "of the first row's time": round(seconds / first, 3),
            }
            rows.append(row)
    print_table(rows, file=file, ratios=["outside the encoders", "of the first row's time"])


def extract_here(folder: Path, num_workers: int) -> None:
    """One process of [`extraction`]: prints its seconds and those inside the encoders."""
    torch.manual_seed(0)
    model, processor, inside = jca.JCAModel(jca.JCAConfig(**TINY)).eval(), jca.JCAProcessor(), [0.0]
    pixels, sound = torch.zeros(1, 1, 8, 3, 112, 112), torch.zeros(1, 1, 64, 107)
    work = {  # of a clip
        "video": operations(lambda: model.get_video_features(pixels)),
        "audio": operations(lambda: model.get_audio_features(sound)),
    }
    for modality in ("video", "audio"):
        setattr(
            model,
            f"get_{modality}_features",
            timed(getattr(model, f"get_{modality}_features"), time.perf_counter, inside),
        )
    dataset = load_prepared(folder / "prepared", "train")
    cache = folder / f"cache-{os.environ['WORLD_SIZE']}-{num_workers}"
    start = time.perf_counter()
    features = extract_features(dataset, model, processor, 8, cache, num_workers)
    seconds = time.perf_counter() - start
    # of those that a mask leaves out none is computed
    computed = {name: sum(mask.sum() for mask in features.with_format("numpy")[f"{name}_mask"]) for name in work}
    clips = int(max(computed.values()))
    here = sum(work[name] * computed[name] for name in work) / int(os.environ["WORLD_SIZE"])  # the processes share them
    share = here / inside[0] / product_peak()
    print(json.dumps({"seconds": seconds, "inside": inside[0], "clips": clips, "of the peak": share}), flush=True)


def epoch(file: Path | None, num_videos: int = 356, num_frames: int = 5618, hop: int = 4, size: int = 512) -> None:
    from datasets import Dataset, concatenate_datasets
    from datasets.arrow_writer import ArrowWriter

    wide = {"hidden_sizes": [size], "depths": [1]}
    torch.manual_seed(0)
    model = jca.JCAModel(
        jca.JCAConfig(
            video_config={**TINY["video_config"], **wide, "stem_size": 1}, audio_config={**TINY["audio_config"], **wide}
        )
    )
    model.freeze_encoders()
    processor, rng, paths, rows = jca.JCAProcessor(), np.random.default_rng(0), [], []
    with tempfile.TemporaryDirectory() as folder:
        ends = np.unique(processor.plan(num_frames, hop))
        for index in range(num_videos):
            path = Path(folder) / f"{index}.arrow"
            with ArrowWriter(path=str(path), features=_schema(model)) as writer:
                row = {"video_id": str(index), "end_frames": ends, "times": np.arange(num_frames) / 30}
                row["labels"] = rng.uniform(-1, 1, (num_frames, 2)).astype(np.float32)
                for modality in ("video", "audio"):
                    row[f"{modality}_features"] = rng.standard_normal((len(ends), size), np.float32).astype(np.float16)
                    row[f"{modality}_mask"] = ends < num_frames
                writer.write(row)
                writer.finalize()
            paths.append(path)
        for count in (num_videos // 4, num_videos):
            features = concatenate_datasets([Dataset.from_file(str(path)) for path in paths[:count]])
            windows = WindowDataset(features, processor, hop, every_phase=True)
            sampler, arguments = EpochSampler(windows.rows, windows.num_clips // 16), StageArguments()
            loader = torch.utils.data.DataLoader(
                windows, arguments.batch_size, sampler=sampler, collate_fn=WindowBatch.collate
            )
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
            model.train()
            before = memory()["RssAnon"]
            cache = sum(path.stat().st_size for path in paths[:count]) / 2**20
            for number in range(2):  # the first finds no page of the cache mapped
                sampler.set_epoch(number)
                waited, start = 0.0, time.perf_counter()
                last = start
                for batch in loader:
                    waited += time.perf_counter() - last
                    model(**batch).loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    del batch
                    last = time.perf_counter()
                seconds = time.perf_counter() - start
                row = {
                    "videos": str(count),  # text tells rows apart
                    "frames": count * num_frames,
                    "clips": windows.num_clips,
                    "cache (MiB)": round(cache),
                    "epoch": str(number + 1),
                    "steps": len(loader),
                    "seconds": round(seconds, 1),
                    "steps a second": round(len(loader) / seconds),
                    "inside the loader": round(waited / seconds, 3),
                    "own memory grew by (MiB)": round(memory()["RssAnon"] - before),
                }
                rows.append(row)
            del features, windows, sampler, loader
    print_table(rows, file=file, ratios=["inside the loader"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("listing", "extraction", "epoch"))
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a process that this one started
    parser.add_argument("--num_workers", type=int, help=argparse.SUPPRESS)
    add_json(parser)
    arguments = parser.parse_args()
    if arguments.folder:
        extract_here(arguments.folder, arguments.num_workers)
        return
    {"listing": listing, "extraction": extraction, "epoch": epoch}[arguments.what](arguments.json)


if __name__ == "__main__":
    main()
