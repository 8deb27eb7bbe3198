"""Pictures of a timeline. They need the extra `plots`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from jca.corpus import frame_labels


# Okabe and Ito's blue and vermilion: told apart in colour-blind sight and, by their lines, in grey print
COLORS = {"valence": "#0072B2", "arousal": "#D55E00"}
LINES = {"valence": "-", "arousal": "--"}


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and one past the last index of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def plot_timeline(
    rows: Sequence[dict],
    path: str | Path,
    title: str = "",
    labels: np.ndarray | None = None,
    audio_share: np.ndarray | None = None,
) -> None:
    """
    Valence and arousal over time and the path through the circumplex, as a picture file.

    Args:
        rows: of the pipeline, of one face.
        path: PNG, PDF, SVG or whatever else Matplotlib writes.
        labels (`np.ndarray` of shape `(frames, 2)`, *optional*): annotated valence and arousal, drawn thin; -5 is a gap.
        audio_share (`np.ndarray` of shape `(frames, 2)`, *optional*): share of the voice in each, drawn below; see
            `jca.explanations.audio_share`.

    Raises:
        ImportError: if Matplotlib is not installed.
    """
    figure_class = _figure_class()
    from matplotlib.collections import LineCollection

    times = np.array([row["time"] for row in rows])
    heights = [3] if audio_share is None else [3, 1]
    figure = figure_class(figsize=(11, 3 + 0.4 * sum(heights)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[2.1, 1])
    series, *below = left.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    circle = right.subplots()
    if labels is not None:
        labels = np.where(labels[: len(rows)] == -5, np.nan, labels[: len(rows)])
    for index, (name, color) in enumerate(COLORS.items()):
        values = [row[name] for row in rows]
        series.plot(times, values, color=color, linestyle=LINES[name], linewidth=1.8, label=name)
        if labels is not None:
            series.plot(
                times[: len(labels)],
                labels[:, index],
                color=color,
                linewidth=0.7,
                alpha=0.8,
                label=f"{name}, annotated",
            )
    missing = {
        "no face detected": (~np.array([row["face_detected"] for row in rows]), 0.955),
        "no audio": (~np.array([row["audio_present"] for row in rows]), 0.0),
    }
    period = np.median(np.diff(times)) if len(times) > 1 else 1 / 30
    for name, (flags, bottom) in missing.items():
        for index, (start, stop) in enumerate(_runs(flags)):
            series.axvspan(
                times[start],
                times[stop - 1] + period,
                bottom,
                bottom + 0.045,
                color="0.35" if bottom else "0.65",
                linewidth=0,
                label=f"{name} ({'top' if bottom else 'bottom'})" if index == 0 else None,
            )
    series.axhline(0, color="0.6", linewidth=0.8)
    series.set(
        xlim=(times[0], times[-1] + period),
        ylim=(-1.05, 1.05),
        xlabel="time (s)",
        ylabel="valence, arousal",
        title=title,
    )
    left.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    for axes in below:
        for index, (name, color) in enumerate(COLORS.items()):
            axes.plot(times, audio_share[:, index], color=color, linestyle=LINES[name], linewidth=1.3)
        axes.axhline(0.5, color="0.6", linewidth=0.8)
        axes.set(
            ylim=(0, 1), yticks=[0, 0.5, 1], yticklabels=["face", "both", "voice"], ylabel="owed to", xlabel="time (s)"
        )
        series.set_xlabel("")

    points = np.array([[row["valence"], row["arousal"]] for row in rows])
    segments = np.stack([points[:-1], points[1:]], axis=1)
    path_line = LineCollection(segments, cmap="viridis", array=times[:-1], linewidth=1.6)
    circle.add_collection(path_line)
    circle.add_artist(_circle())
    circle.axhline(0, color="0.6", linewidth=0.8)
    circle.axvline(0, color="0.6", linewidth=0.8)
    for x, y, text in ((-0.98, 0.98, "tense"), (0.98, 0.98, "excited"), (-0.98, -0.98, "sad"), (0.98, -0.98, "calm")):
        circle.text(
            x, y, text, ha="left" if x < 0 else "right", va="top" if y > 0 else "bottom", color="0.35", fontsize=9
        )
    circle.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xlabel="valence", ylabel="arousal", aspect="equal")
    right.colorbar(path_line, ax=circle, label="time (s)", location="bottom", shrink=0.8)
    figure.savefig(path, dpi=120)


def _circle():
    from matplotlib.patches import Circle

    return Circle((0, 0), 1, fill=False, color="0.6", linewidth=0.8)


def plot_labels(splits: Mapping[str, Dataset], path: str | Path) -> None:
    """
    How valence and arousal are distributed in each split of a corpus, as a picture file: all annotated frames in the plane,
    and each on its own at its side.

    Args:
        splits: rows of a corpus, see `jca.corpus`, by the split's name.

    Raises:
        ImportError: if Matplotlib is not installed.
    """
    figure_class = _figure_class()
    edges = np.linspace(-1, 1, 41)
    figure = figure_class(figsize=(5 * len(splits), 5), layout="constrained")
    for part, (split, rows) in zip(np.atleast_1d(figure.subfigures(1, len(splits))), splits.items(), strict=True):
        labels = np.concatenate([frame_labels(row)[row["labelled"]] for row in rows])
        grid = part.subplots(
            2, 2, sharex="col", sharey="row", width_ratios=[4, 1], height_ratios=[1, 4], gridspec_kw={"hspace": 0.02}
        )
        (above, corner), (plane, beside) = grid
        corner.axis("off")
        counts = np.histogram2d(*labels.T, bins=edges)[0]
        # few frames are as well seen as many: Aff-Wild2 has most of them near neutral
        plane.imshow(
            np.log10(np.where(counts > 0, counts, np.nan)).T,
            origin="lower",
            extent=(-1, 1, -1, 1),
            aspect="auto",
            cmap="Blues",
            vmin=-1,
        )
        for axes, values, name, way in (
            (above, labels[:, 0], "valence", "vertical"),
            (beside, labels[:, 1], "arousal", "horizontal"),
        ):
            axes.hist(values, edges, orientation=way, color=COLORS[name])
            axes.tick_params(labelsize=7)
        ticks = [-1, -0.5, 0, 0.5, 1]
        plane.set(xlabel="valence", ylabel="arousal", xlim=(-1, 1), ylim=(-1, 1), xticks=ticks, yticks=ticks)
        plane.axhline(0, color="0.6", linewidth=0.8)
        plane.axvline(0, color="0.6", linewidth=0.8)
        part.suptitle(f"{split}: {len(labels):,} annotated frames, videos: {len(rows)}", fontsize=11)
    figure.savefig(path, dpi=120)


def plot_robustness(
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    path: str | Path,
    title: str = "",
    alone: Mapping[str, float] | None = None,
) -> None:
    """
    CCC over the share of clips that lack a modality, a panel for each, as a picture file.

    Args:
        curves: of `jca.corruption.missing_curve`, by modality.
        alone (*optional*): mean CCC of models of one modality, by its name: a line in the panel where it is what is left.

    Raises:
        ImportError: if Matplotlib is not installed.
    """
    figure_class = _figure_class()
    series = {"ccc": ("mean", "0.1", "-", "o", 2.2)}
    for name, marker in (("valence", "s"), ("arousal", "^")):
        series[f"ccc_{name}"] = (name, COLORS[name], LINES[name], marker, 1.5)
    figure = figure_class(figsize=(1.2 + 4.4 * len(curves), 4.2), layout="constrained")
    figure.get_layout_engine().set(wspace=0.04)
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (modality, points) in zip(panels, curves.items(), strict=True):
        shares = [point["share"] for point in points]
        for key, (name, color, line, marker, width) in series.items():
            values = [point[key] for point in points]
            axes.plot(
                shares,
                values,
                line,
                color=color,
                marker=marker,
                markersize=5,
                linewidth=width,
                label=name,
                clip_on=False,
            )
        for other, value in (alone or {}).items():
            if other != modality:
                axes.axhline(value, color="0.45", linewidth=1.2, linestyle=":")
                axes.text(
                    0.03,
                    value,
                    f"{other} alone, mean",
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    color="0.3",
                    fontsize=8.5,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
                )
        axes.set(xlim=(-0.02, 1.02), xlabel=f"share of clips without {modality}")
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    low, high = panels[0].get_ylim()
    panels[0].set(ylim=(min(low, 0), high), ylabel="CCC")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9, handlelength=3.5)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)


def plot_predictions(
    predictions: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    times: Sequence[np.ndarray],
    path: str | Path,
    names: Sequence[str] = ("valence", "arousal"),
    num_videos: int = 4,
) -> None:
    """
    Predictions (thick) beside annotations (thin) of some videos of a split over time, as a picture file.

    Args:
        predictions, labels (list of `np.ndarray` of shape `(frames, outputs)`): one entry for each video; -5 is a gap.
        times (list of `np.ndarray` of shape `(frames,)`): in seconds.
        num_videos: so many are drawn, spread evenly over the split.

    Raises:
        ImportError: if Matplotlib is not installed.
    """
    figure_class = _figure_class()
    shown = np.unique(np.linspace(0, len(predictions) - 1, min(num_videos, len(predictions))).round().astype(int))
    figure = figure_class(figsize=(11, 2.1 * len(shown) + 0.6), layout="constrained")
    for axes, video in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
        annotated = np.where(labels[video] == -5, np.nan, labels[video])
        for index, (name, color) in enumerate(zip(names, COLORS.values(), strict=False)):
            style = list(LINES.values())[index]
            axes.plot(
                times[video], predictions[video][:, index], color=color, linestyle=style, linewidth=1.8, label=name
            )
            axes.plot(
                times[video], annotated[:, index], color=color, linewidth=0.7, alpha=0.8, label=f"{name}, annotated"
            )
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set(ylim=(-1.05, 1.05), xlim=(times[video][0], times[video][-1]), ylabel=f"video {video}")
    axes.set_xlabel("time (s)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=8.5)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _figure_class():
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need Matplotlib: pip install 'jca[plots]'") from error
    return Figure
