"""Pictures of a timeline. They need the extra `plots`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from datasets import Dataset

from jca.corpus import frame_labels
from jca.timeline import QUADRANTS, Timeline


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure


# Okabe and Ito's blue and vermilion: told apart in colour-blind sight and, by their lines, in grey print
COLORS = {"valence": "#0072B2", "arousal": "#D55E00"}
LINES = {"valence": "-", "arousal": "--"}
# their other colours: of faces
FACE_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#999999")


class Panel(NamedTuple):
    """What one panel shows: the rows of a face, or those without one."""

    name: str  # empty where a timeline has no second panel to be told from
    color: str
    rows: Timeline


def main_faces(timeline: Timeline, most: int = len(FACE_COLORS)) -> dict[int, str]:
    """The faces with the most rows, no more than `most`, in order of appearance, and their colours."""
    counts = dict(zip(*np.unique(timeline.face, return_counts=True), strict=True))
    ranked = sorted(timeline.faces, key=lambda face: -counts[face])
    colors = dict(zip(sorted(ranked[: len(FACE_COLORS)], key=timeline.faces.index), FACE_COLORS, strict=False))
    return {face: color for face, color in colors.items() if face in ranked[:most]}


def face_panels(timeline: Timeline, most: int = len(FACE_COLORS)) -> list[Panel]:
    """
    A timeline as panels show it: one for each of the `most` faces with the most rows, in order of appearance, and one for
    the rows without a face; a single one for all rows if there is no more than one face.
    """
    if len(timeline.faces) <= 1:
        return [Panel("", "0.8", timeline)]
    panels = [
        Panel(f"face {face}", color, timeline.of_face(face)) for face, color in main_faces(timeline, most).items()
    ]
    if (timeline.face == -1).any():
        panels.append(Panel("voice only", "0.8", timeline.of_face(None)))
    return panels


def draw_series(axes: "Axes", rows: Timeline, width: float = 1.8) -> None:
    """
    Valence and arousal of no more than one row a frame over time, lines of `width` points: broken where frames have no row,
    thinner and hatched where nobody is seen. A dark band at the top marks where a face was looked for and not found (a box
    without it was cut unseen), a light one at the bottom where there is no sound.
    """
    voice_only = rows.face == -1
    axes.axhline(0, color="0.6", linewidth=0.8)
    for name, color in COLORS.items():
        values, label = getattr(rows, name), name
        for chosen, linewidth in ((~voice_only, width), (voice_only, width / 2)):
            if chosen.any():
                times, line = _broken_line(rows, values, chosen)
                style = {"color": color, "linewidth": linewidth}
                axes.plot(times, line, linestyle=LINES[name], label=label, **style)
                # a line through one point is none
                alone = np.isnan(np.concatenate([[np.nan], line, [np.nan]]))
                alone = ~alone[1:-1] & alone[:-2] & alone[2:]
                if alone.any():
                    axes.plot(times[alone], line[alone], "o", markersize=2 * linewidth, **style)
                label = None
    _mark(axes, rows, voice_only, (0, 1), "voice only", facecolor="none", edgecolor="0.85", hatch="///")
    lost = ~rows.face_detected & np.isnan(rows.box).any(axis=1)
    _mark(axes, rows, lost, (0.955, 0.045), "no face detected (top)", color="0.35")
    _mark(axes, rows, ~rows.audio_present, (0, 0.045), "no audio (bottom)", color="0.65")
    axes.set(ylim=(-1.05, 1.05))


def _stretches(rows: Timeline, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the rows `chosen` (bool), and for each the number of its stretch: frames without a gap between them."""
    (index,) = np.nonzero(chosen)
    new = (np.diff(rows.frame[index]) != 1) | (np.diff(rows.face[index]) != 0)
    return index, np.concatenate([[0], np.cumsum(new)])[: len(index)]


def _pieces(times: np.ndarray, stretch: np.ndarray, bins: int) -> np.ndarray:
    """For each sample the number of the piece that it falls into: `bins` equal pieces of time, cut where a stretch ends."""
    return stretch * bins + ((times - times[0]) / (times[-1] - times[0]) * (bins - 1)).astype(int)


def _broken_line(
    rows: Timeline, values: np.ndarray, chosen: np.ndarray, bins: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """Times and values of the rows `chosen`, NaN between stretches; of a long series the lowest and the highest value in
    each of `bins` equal pieces of time, which looks the same."""
    index, stretch = _stretches(rows, chosen)
    times, values = rows.time[index], values[index]
    if len(times) > 4 * bins:
        piece = _pieces(times, stretch, bins)
        order = np.lexsort((values, piece))
        edges = np.flatnonzero(np.diff(piece[order])) + 1
        kept = np.unique(order[np.concatenate([[0], edges, edges - 1, [-1]])])
        times, values, stretch = times[kept], values[kept], stretch[kept]
    breaks = np.flatnonzero(np.diff(stretch)) + 1
    return np.insert(times, breaks, times[breaks]), np.insert(values, breaks, np.nan)


def _spans(rows: Timeline, chosen: np.ndarray) -> list[tuple[float, float]]:
    """Start and length in seconds of every stretch of the rows `chosen`."""
    index, stretch = _stretches(rows, chosen)
    first = np.flatnonzero(np.diff(stretch, prepend=-1))
    last = np.append(first[1:], len(index)) - 1
    starts = rows.time[index[first]]
    return list(zip(starts, rows.time[index[last]] + 1 / rows.fps - starts, strict=True)) if len(index) else []


def _mark(
    axes: "Axes", rows: Timeline, chosen: np.ndarray, band: tuple[float, float], label: str, **style: Any
) -> None:
    """A band (bottom and height, as shares of the panel) wherever rows are `chosen`."""
    if chosen.any():
        style = {"transform": axes.get_xaxis_transform(), "linewidth": 0, "label": label, "zorder": 0.5, **style}
        axes.broken_barh(_spans(rows, chosen), band, **style)


def time_axis(axis: "Axis", timeline: Timeline, most: int = 10) -> None:
    """An axis of Matplotlib's over time, with no more than about `most` ticks: in seconds, from five minutes on in minutes,
    from two hours on in hours."""
    from matplotlib.ticker import MaxNLocator, MultipleLocator

    start, stop = time_limits(timeline)
    if stop - start < 300:
        axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
        axis.set_label_text("time (s)")
        return
    minutes = next(
        step
        for step in (1, 2, 5, 10, 20, 30, 60, 120, 240, 720, 1440)
        if stop - start <= 60 * most * step or step == 1440
    )
    axis.set_major_locator(MultipleLocator(60 * minutes))
    if stop - start < 7200:
        axis.set_major_formatter(lambda seconds, _: f"{seconds / 60:.0f}")
        axis.set_label_text("time (min)")
    else:
        axis.set_major_formatter(lambda seconds, _: f"{seconds // 3600:.0f}:{seconds // 60 % 60:02.0f}")
        axis.set_label_text("time (h:min)")


def plot_timeline(
    timeline: Timeline,
    path: str | Path,
    labels: np.ndarray | None = None,
    audio_share: np.ndarray | None = None,
) -> None:
    """
    Valence and arousal over time, as a picture file: of one face beside its path through the circumplex, of several a panel
    for each below bands that show when it is seen; no more than six panels, those of the faces that are longest in sight.

    Args:
        path: PNG, PDF, SVG or whatever else Matplotlib writes.
        labels (`np.ndarray` of shape `(frames, 2)`, *optional*): annotated valence and arousal, drawn thin; -5 is a gap.
        audio_share (`np.ndarray` of shape `(frames, 2)`, *optional*): share of the voice in each, drawn below; see
            `jca.explanations.audio_share`.

    Raises:
        ImportError: if Matplotlib is not installed.
        ValueError: if the timeline is of several faces, and `labels` or `audio_share` of one.
    """
    figure_class = import_figure()
    panels = face_panels(timeline)
    if len(panels) == 1:
        _plot_one_face(figure_class, timeline, path, labels, audio_share)
    elif labels is not None or audio_share is not None:
        raise ValueError(
            f"labels and audio_share belong to one face, and the timeline is of {len(timeline.faces)}: "
            f"choose one with timeline.of_face({timeline.faces[0]})."
        )
    else:
        _plot_faces(figure_class, timeline, panels, path)


def _plot_one_face(
    figure_class: type,
    timeline: Timeline,
    path: str | Path,
    labels: np.ndarray | None,
    audio_share: np.ndarray | None,
) -> None:
    heights = [3] if audio_share is None else [3, 1]
    figure = figure_class(figsize=(11, 3 + 0.4 * sum(heights)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[2.1, 1])
    series, *below = left.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    draw_series(series, timeline)
    everywhere = np.ones(len(timeline), bool)
    for index, (name, color) in enumerate(COLORS.items()):
        if labels is not None:
            annotated = _of_frames(np.where(labels == -5, np.nan, labels), timeline)[:, index]
            times, line = _broken_line(timeline, annotated, everywhere)
            series.plot(times, line, color=color, linewidth=0.7, alpha=0.8, label=f"{name}, annotated")
        for axes in below:
            times, line = _broken_line(timeline, _of_frames(audio_share, timeline)[:, index], everywhere)
            axes.plot(times, line, color=color, linestyle=LINES[name], linewidth=1.3)
    for axes in below:
        axes.axhline(0.5, color="0.6", linewidth=0.8)
        axes.set(ylim=(0, 1), yticks=[0, 0.5, 1], yticklabels=["face", "both", "voice"], ylabel="owed to")
    series.set_title(timeline.name, parse_math=False)
    series.set(xlim=time_limits(timeline), yticks=[-1, -0.5, 0, 0.5, 1], ylabel="valence, arousal")
    time_axis((below or [series])[-1].xaxis, timeline)
    left.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    circle = right.subplots()
    path_line = _draw_path(circle, timeline, time_limits(timeline))
    bar = right.colorbar(path_line, ax=circle, location="bottom", shrink=0.8)
    time_axis(bar.ax.xaxis, timeline, most=5)
    figure.savefig(path, dpi=120)


def _of_frames(values: np.ndarray, rows: Timeline) -> np.ndarray:
    """What each row's frame has in `values` `(frames, outputs)`; NaN beyond their end."""
    padded = np.full((max(rows.frame.max() + 1, len(values)), values.shape[1]), np.nan, np.float32)
    padded[: len(values)] = values
    return padded[rows.frame]


def time_limits(timeline: Timeline) -> tuple[float, float]:
    """Seconds in which the first frame begins and the last ends."""
    return timeline.time.min(), timeline.time.max() + 1 / timeline.fps


def _plot_faces(figure_class: type, timeline: Timeline, panels: list[Panel], path: str | Path) -> None:
    figure = figure_class(figsize=(11, 1.2 + 0.2 * len(panels) + 1.5 * len(panels)), layout="constrained")
    heights = [0.2 * len(panels), *[1.5] * len(panels)]
    bands, *series = figure.subplots(len(heights), sharex=True, height_ratios=heights)
    for index, panel in enumerate(panels):
        lost = ~panel.rows.face_detected & (panel.rows.face >= 0)
        # thin where a face is lost for a moment, nothing where it is not there
        for chosen, height in ((lost, 0.12), (~lost, 0.7)):
            spans = _spans(panel.rows, chosen)
            bands.broken_barh(spans, (index - height / 2, height), color=panel.color, linewidth=0)
    bands.set(yticks=range(len(panels)), yticklabels=[panel.name for panel in panels], ylim=(len(panels) - 0.4, -0.6))
    bands.tick_params("y", length=0, labelsize=8.5)
    bands.tick_params("x", length=0)
    bands.spines[:].set_visible(False)
    for panel, axes in zip(panels, series, strict=True):
        draw_series(axes, panel.rows, width=1.5)
        axes.set_title(panel.name, loc="left", fontsize=9, bbox={"facecolor": panel.color, "pad": 2, "linewidth": 0.5})
    series[-1].set_xlim(time_limits(timeline))
    time_axis(series[-1].xaxis, timeline)
    figure.supylabel("valence, arousal", fontsize=10)
    named = {}
    for axes in series:
        for artist, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, artist)
    figure.legend(named.values(), named, loc="outside lower center", ncols=5, frameon=False, fontsize=8.5)
    figure.suptitle(_title(timeline), parse_math=False)
    figure.savefig(path, dpi=120)


def _title(timeline: Timeline) -> str:
    shown, number = len(main_faces(timeline)), len(timeline.faces)
    return timeline.name + (f"\n{shown} of {number} faces, those longest in sight" if shown < number else "")


def plot_circumplex(timeline: Timeline, path: str | Path) -> None:
    """
    The path of each face through the plane of valence and arousal, coloured by time, as a picture file: a panel for each,
    as in [`plot_timeline`]. Grey is where time is spent, the cross the mean over time.

    Raises:
        ImportError: if Matplotlib is not installed.
    """
    figure_class = import_figure()
    panels = face_panels(timeline)
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    figure = figure_class(figsize=(4.2 * columns + 1, 4.2 * lines + 0.5), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flat
    for panel, axes in zip(panels, grid, strict=False):
        rows = panel.rows
        seconds = np.diff(rows.time, append=rows.time[-1] + 1 / rows.fps)
        # how long a row holds is not known where the next frame has none
        seconds = np.where(np.diff(rows.frame, append=rows.frame[-1] + 1) == 1, seconds, 1 / rows.fps)
        edges = np.linspace(-1, 1, 22)
        spent = np.histogram2d(rows.valence, rows.arousal, bins=edges, weights=seconds)[0]
        axes.pcolormesh(edges, edges, np.where(spent > 0, spent, np.nan).T, cmap="Greys", vmin=0, vmax=2 * spent.max())
        path_line = _draw_path(axes, rows, time_limits(timeline))
        mean = [np.average(rows.valence, weights=seconds), np.average(rows.arousal, weights=seconds)]
        axes.plot(*mean, "P", color="#D55E00", markeredgecolor="white", markersize=11)
        axes.set_title(f"{panel.name}   mean {mean[0]:+.2f}, {mean[1]:+.2f}".strip(), fontsize=9)
    for axes in list(grid):
        axes.axis("off")
    bar = figure.colorbar(path_line, ax=figure.axes, shrink=0.8 / lines)
    time_axis(bar.ax.yaxis, timeline)
    figure.supxlabel("grey: time spent there    +: mean over time", fontsize=8.5)
    figure.suptitle(_title(timeline), parse_math=False)
    figure.savefig(path, dpi=120)


def _draw_path(axes: "Axes", rows: Timeline, limits: tuple[float, float], bins: int = 2000) -> "ScalarMappable":
    """The plane with its circle and quadrants, and the path of `rows` in it, thin where nobody is seen: of a long series the
    means in `bins` equal pieces of time. Returns what a colour bar needs."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Circle

    index, stretch = _stretches(rows, np.ones(len(rows), bool))
    piece = index if len(rows) <= bins else _pieces(rows.time, stretch, bins)
    first = np.flatnonzero(np.diff(piece, prepend=-1))
    points = np.stack([rows.valence, rows.arousal], axis=1, dtype=np.float64)
    points = np.add.reduceat(points, first) / np.diff(np.append(first, len(rows)))[:, None]
    times, widths, stretch = rows.time[first], np.where(rows.face[first] == -1, 0.8, 1.6), stretch[first]
    style = {"cmap": "viridis", "clim": limits}
    follows = stretch[1:] == stretch[:-1]
    segments = np.stack([points[:-1], points[1:]], axis=1)[follows]
    path_line = LineCollection(segments, array=times[:-1][follows], linewidths=widths[:-1][follows], **style)
    axes.add_collection(path_line)
    alone = ~np.append(follows, False) & ~np.append(False, follows)
    axes.scatter(*points[alone].T, c=times[alone], s=9 * widths[alone], **style)
    axes.add_artist(Circle((0, 0), 1, fill=False, color="0.6", linewidth=0.8))
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.axvline(0, color="0.6", linewidth=0.8)
    for text, x, y in zip(QUADRANTS, (0.98, -0.98, -0.98, 0.98), (0.98, 0.98, -0.98, -0.98), strict=True):
        ha, va = "left" if x < 0 else "right", "top" if y > 0 else "bottom"
        axes.text(x, y, text, ha=ha, va=va, color="0.35", fontsize=9)
    axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xlabel="valence", ylabel="arousal", aspect="equal")
    return path_line


def plot_labels(splits: Mapping[str, Dataset], path: str | Path) -> None:
    """
    How valence and arousal are distributed in each split of a corpus, as a picture file: all annotated frames in the plane,
    and each on its own at its side.

    Args:
        splits: rows of a corpus, see `jca.corpus`, by the split's name.

    Raises:
        ImportError: if Matplotlib is not installed.
    """
    figure_class = import_figure()
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
    figure_class = import_figure()
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
    figure_class = import_figure()
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


def import_figure() -> "type[Figure]":
    """Matplotlib's `Figure`. Raises an ImportError that says what to install."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need Matplotlib: pip install 'jca[plots]'") from error
    return Figure
