"""A page that shows a video with its timeline of valence and arousal beside it: a Space, or `python app/app.py`."""

import argparse
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from huggingface_hub import ModelCard
from matplotlib.colors import to_hex
from transformers import pipeline

from jca import AudioVisualEmotionPipeline
from jca.plots import face_panels, plot_circumplex, plot_timeline
from jca.timeline import FORMATS, QUADRANTS, Timeline
from sources_jca import IncompleteMediaWarning, Limits, MediaError, open_media, streams_of


HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / "runs/demo"  # of `make demo`
DEMO_MODEL, DEMO_VIDEO = DEMO / "seed-0/fusion", DEMO / "corpus/batch1/synthetic-0032.mp4"
MAX_MEGABYTES = 200
LIMITS = Limits(max_seconds=300, max_pixels=9_000_000)  # 4K
TABLE_ROWS = 100
KEPT_SECONDS = 3600
DOWNLOADS = {**dict.fromkeys(FORMATS, Timeline.save), ".png": plot_timeline, ".circumplex.png": plot_circumplex}
# what player.js reads of a row
DRAWN = ("time", "frame", "valence", "arousal", "box", "face_detected", "audio_present")

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

MEANING = """\
**Valence** runs from −1 (unpleasant) to 1 (pleasant), **arousal** from −1 (calm) to 1 (excited), as annotators rated what
they saw and heard. They describe an expression, not what somebody feels or is. Not to be used to judge individuals, in
hiring, education, policing, or wherever a person has not agreed to it."""
SYNTHETIC = """\
**This model is a demonstration.** It was trained on drawn faces and artificial voices: what it says of people means
nothing."""
RULES = f"""\
Videos of up to {LIMITS.max_seconds:.0f} s and {MAX_MEGABYTES} MB. Without sound the face alone is used, where no face is
seen the voice, and the rows say so; a file that can not be read is refused with the reason. Video and results are for you
alone and deleted after an hour."""


def find_model(given: str | None) -> str:
    """The model that is named, or that of the demo."""
    if given:
        return given
    if DEMO_MODEL.exists():
        return str(DEMO_MODEL)
    raise SystemExit(
        "No model. Name a folder or a repository of the Hub, by --model or the environment variable JCA_MODEL, or make one "
        f"with `make demo`, which leaves it in {DEMO_MODEL}."
    )


def read_card(model: str) -> str:
    """The text of a model's card, empty if it has none."""
    if os.path.isdir(model):
        file = Path(model, "README.md")
        return ModelCard(file.read_text(encoding="utf-8")).text if file.exists() else ""
    try:
        return ModelCard.load(model).text
    except OSError:
        return ""


def with_progress(rows: Iterable[dict[str, Any]], path: str, progress: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """The rows, which tell `progress` of every second of the video at `path` that is done."""
    with open_media(path, LIMITS) as container:
        total = container.duration and math.ceil(container.duration / 1e6)
    done = -1
    for row in rows:
        if row["time"] >= done + 1:
            done = int(row["time"])
            progress((done, total), desc="Reading", unit="seconds")
        yield row


def player_value(timeline: Timeline, path: str) -> dict[str, Any]:
    """What player.js shows."""
    with open_media(
        path, LIMITS
    ) as container:  # a browser counts from the start of the file, rows from the first frame
        stream, _ = streams_of(container)
        start = float((stream.start_time or 0) * stream.time_base) - (container.start_time or 0) / 1e6
    panels = []
    for panel in face_panels(timeline):
        rows = list(panel.rows)
        columns = {name: [row[name] for row in rows] for name in DRAWN}
        panels.append({"name": panel.name, "color": to_hex(panel.color), **columns})
    video = gr.FileData(path=path).model_dump()
    return {"video": video, "start": start, "fps": timeline.fps, "quadrants": QUADRANTS, "panels": panels}


def describe(timeline: Timeline) -> str:
    """Markdown: a line for each face."""
    lines = []
    for face in timeline.summary()["faces"]:
        name = "voice only" if face["face"] is None else f"face {face['face']}"
        means = (f"{of} {face[of]['mean']:+.2f} ± {face[of]['std']:.2f}" for of in ("valence", "arousal"))
        shares = (f"{quadrant} {share:.0%}" for quadrant, share in face["quadrants"].items())
        seen = f"{face['seconds']:.1f} s, face detected in {face['share_detected']:.0%}"
        lines.append(f"- **{name}**: {'; '.join([seen, *means, ', '.join(shares)])}")
    return "\n".join(lines)


def save_all(timeline: Timeline) -> list[str]:
    """The files of [`DOWNLOADS`], in a folder of their own that Gradio empties."""
    folder = tempfile.mkdtemp(dir=gr.utils.get_upload_folder())
    files = [f"{folder}/{Path(timeline.name).stem}{suffix}" for suffix in DOWNLOADS]
    for file, write in zip(files, DOWNLOADS.values(), strict=True):
        write(timeline, file)
    return files


def without_folder(text: str, path: str) -> str:
    """What is said of the file at `path`, under the name that its visitor knows."""
    return text.replace(path, Path(path).name)


def analyse(pipe: AudioVisualEmotionPipeline, path: str, progress: Callable[..., Any]) -> tuple[Timeline, list[str]]:
    """
    The timeline of the video at `path`, and what is to be said of it.

    Raises:
        MediaError: if it can not be read, or is larger or longer than `LIMITS`.
    """
    progress(0, desc="Reading")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", IncompleteMediaWarning)
        rows = with_progress(pipe.stream(path, limits=LIMITS), path, progress)
        timeline = Timeline.from_rows(rows, Path(path).name)
    return timeline, [str(warning.message) for warning in caught if warning.category is IncompleteMediaWarning]


def build_page(model: str) -> gr.Blocks:
    """The page for one model, a folder or a repository of the Hub."""
    pipe = pipeline("audio-visual-emotion", model=model)
    with gr.Blocks(title="Valence and arousal over time", delete_cache=(60, KEPT_SECONDS)) as page:
        synthetic = DEMO in Path(model).resolve().parents
        gr.Markdown("\n\n".join(["# Valence and arousal over time", MEANING, *([SYNTHETIC] if synthetic else [])]))
        with gr.Column() as entry:
            webcam = gr.WebcamOptions(constraints={"video": {"width": {"ideal": 640}, "height": {"ideal": 480}}})
            video = gr.Video(
                label="Drop a video, or record one",
                include_audio=True,
                webcam_options=webcam,
                height=420,
                elem_id="entry",
            )
            problem = gr.Markdown(elem_id="problem")
            if DEMO_VIDEO.exists():
                gr.Examples([[str(DEMO_VIDEO)]], video, label="A synthetic video")
        with gr.Column(visible=False) as results:
            player = gr.HTML(html_template="", js_on_load=(HERE / "player.js").read_text(encoding="utf-8"))
            summary = gr.Markdown()
            gr.Markdown("### Files")
            with gr.Row():
                files = [gr.DownloadButton(suffix[1:], size="sm", min_width=110) for suffix in DOWNLOADS]
            table = gr.Dataframe(interactive=False)
            again = gr.Button("Another video")
        gr.Markdown(RULES)
        name = Path(model).name if os.path.isdir(model) else model
        with gr.Accordion(f"The model, {name}", open=False):
            gr.Markdown(read_card(model) or "It has no card.")

        def run(path: str | None, progress=gr.Progress()):  # noqa: B008  Gradio looks for it there
            if path is None:  # it was taken away
                return {problem: ""}
            try:
                timeline, remarks = analyse(pipe, path, progress)
            except MediaError as error:
                return {problem: f"**This video can not be used.** {without_folder(str(error), path)}"}
            saved = save_all(timeline)
            first = pd.read_csv(saved[0], nrows=TABLE_ROWS).round(3)
            return {
                entry: gr.Column(visible=False),
                results: gr.Column(visible=True),
                player: player_value(timeline, path),
                summary: "\n\n".join([describe(timeline), *(without_folder(remark, path) for remark in remarks)]),
                table: gr.Dataframe(first, label=f"The first of {len(timeline)} rows"),
                **dict(zip(files, saved, strict=True)),
            }

        def start_again():
            return {entry: gr.Column(visible=True), results: gr.Column(visible=False), player: None, video: None}

        outputs = [entry, problem, results, player, summary, table, *files]
        # one at a time: warnings are caught for all threads alike
        video.change(run, video, outputs, show_progress_on=video, concurrency_limit=1)
        again.click(start_again, None, [entry, results, player, video])
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=os.environ.get("JCA_MODEL"), help="a folder or a repository of the Hub")
    parser.add_argument("--port", type=int, help="7860 or the next one that is free, if not given")
    arguments = parser.parse_args()
    build_page(find_model(arguments.model)).launch(
        server_port=arguments.port,
        share=False,
        max_file_size=f"{MAX_MEGABYTES}mb",
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css_paths=HERE / "player.css",
        footer_links=[],
        run_history=False,
    )


if __name__ == "__main__":
    main()
