import math

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from rows import row

from jca.plots import COLORS, FACE_COLORS, draw_series, main_faces, plot_circumplex, plot_timeline
from jca.timeline import QUADRANTS, Timeline


NAME = "Gespräch $5_$ größer.mp4"


def film(spans, num_frames, lost=()):
    """`spans` has the frames, from and to, in which each face has rows, `lost` pairs of face and frame."""
    rows = []
    for frame in range(num_frames):
        faces = [face for face, (start, stop) in spans.items() if start <= frame < stop]
        for face in faces or [None]:
            values = {"valence": math.sin(frame / 40), "arousal": math.cos(frame / 25) / 2}
            if (face, frame) in lost:
                values |= {"face_detected": False, "box": None, "face_quality": None}
            rows.append(row(frame, face, audio_present=frame >= 15, **values))
    return Timeline.from_rows(rows, name=NAME)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, as they are saved."""
    saved, savefig = [], Figure.savefig

    def save(figure, *arguments, **options):
        saved.append(figure)
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def panels(figure):
    return [axes for axes in figure.axes if axes.get_ylim() == (-1.05, 1.05) and axes.get_xlabel() != "valence"]


def planes(figure):
    return [axes for axes in figure.axes if axes.get_xlabel() == "valence"]


def lines(axes, name, dashes):
    """Times and values of the lines of an output, by their width."""
    of_output = [line for line in axes.lines if line.get_color() == COLORS[name] and line.get_linestyle() == dashes]
    return {line.get_linewidth(): line.get_xydata() for line in of_output}


def stretches(points):
    """Where a line starts and ends, again after every break."""
    there = ~np.isnan(points[:, 1])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], there, [0]]))).reshape(-1, 2)
    return [(points[start, 0].round(3), points[stop - 1, 0].round(3)) for start, stop in edges]


def bands(axes):
    """Start and end of what marks something, by its name."""
    return {
        band.get_label(): [tuple(path.get_extents().intervalx.round(3)) for path in band.get_paths()]
        for band in axes.collections
    }


def test_one_face(figures, tmp_path):
    timeline = film({0: (30, 250)}, 300, lost=[(0, frame) for frame in range(120, 132)])
    plot_timeline(timeline, tmp_path / "a.png")
    height, width, _ = imread(tmp_path / "a.png").shape
    assert 1000 < width < 2000
    assert 400 < height < 1000
    (series,), (plane,) = panels(figures[0]), planes(figures[0])
    assert series.get_title() == NAME
    for name, dashes in (("valence", "-"), ("arousal", "--")):
        drawn = lines(series, name, dashes)
        thick, thin = max(drawn), min(drawn)
        assert thick > 1.5 * thin
        assert stretches(drawn[thick]) == [(1.0, 8.3)]  # a short loss is marked and breaks no line
        assert stretches(drawn[thin]) == [(0.0, 0.967), (8.333, 9.967)]  # the voice alone
        seen = timeline.of_face(0)
        assert drawn[thick][:, 1] == pytest.approx(getattr(seen, name))
    assert bands(series) == {
        "voice only": [(0.0, 1.0), (8.333, 10.0)],
        "no face detected (top)": [(0.0, 1.0), (4.0, 4.4), (8.333, 10.0)],
        "no audio (bottom)": [(0.0, 0.5)],
    }
    assert {text.get_text() for text in plane.texts} == set(QUADRANTS)


def test_a_line_breaks_where_its_face_is_not_there(tmp_path):
    frames = [*range(40), *range(61, 80), 90]
    rows = Timeline.from_rows(row(frame, valence=0.5, arousal=-0.5) for frame in frames)
    figure = Figure(figsize=(10, 3), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_series(axes, rows, width=3)
    axes.set(xlim=(0, 100 / 30))
    assert stretches(lines(axes, "valence", "-")[3]) == [(0.0, 1.3), (2.033, 2.633), (3.0, 3.0)]
    figure.savefig(tmp_path / "a.png")
    picture = imread(tmp_path / "a.png")[..., :3]
    blue = (np.abs(picture - np.array([0, 0x72, 0xB2]) / 255).max(-1) < 0.1).any(0)  # by column, 10 px a frame
    assert blue[100:380].all()
    assert not blue[405:600].any()
    assert blue[620:780].all()
    assert blue[895:905].any()  # a frame on its own is a dot
    assert not blue[800:880].any()


def test_several_faces(figures, tmp_path):
    spans = {4: (0, 160), 7: (120, 240)}
    plot_timeline(film(spans, 300, lost=[(4, frame) for frame in range(60, 70)]), tmp_path / "a.png")
    figure = figures[0]
    assert imread(tmp_path / "a.png").shape[0] > 600
    assert figure.get_suptitle() == NAME
    assert [axes.get_title(loc="left") for axes in panels(figure)] == ["face 4", "face 7", "voice only"]
    expected = [[(0.0, 5.3)], [(4.0, 7.967)], [(8.0, 9.967)]]
    assert [stretches(next(iter(lines(axes, "arousal", "--").values()))) for axes in panels(figure)] == expected
    assert [bands(axes).get("no face detected (top)") for axes in panels(figure)] == [[(2, 2.333)], None, [(8, 10)]]
    assert planes(figure) == []

    seen = next(axes for axes in figure.axes if axes not in panels(figure))
    assert [label.get_text() for label in seen.get_yticklabels()] == ["face 4", "face 7", "voice only"]
    spans = {}
    for band in seen.collections:
        for path in band.get_paths():
            extent = path.get_extents()
            key = round(extent.y0 + extent.height / 2), extent.height > 0.5
            spans.setdefault(key, []).append((extent.x0.round(3), extent.x1.round(3), to_hex(band.get_facecolor()[0])))
    green, purple = (color.lower() for color in FACE_COLORS[:2])
    assert spans.pop((2, True)) == [(8.0, 10.0, "#cccccc")]
    assert spans == {
        (0, True): [(0.0, 2.0, green), (2.333, 5.333, green)],
        (0, False): [(2.0, 2.333, green)],  # lost for a moment: thin
        (1, True): [(4.0, 8.0, purple)],
    }


def test_faces_that_are_left_out_are_counted(figures, tmp_path):
    timeline = film({face: (10 * face, 20 * face + 30) for face in range(9)}, 190)
    assert list(main_faces(timeline)) == [3, 4, 5, 6, 7, 8]
    assert list(main_faces(timeline, 2).items()) == list(main_faces(timeline).items())[-2:]  # of the same colours
    plot_timeline(timeline, tmp_path / "a.png")
    plot_circumplex(timeline, tmp_path / "b.png")
    for figure in figures:
        assert figure.get_suptitle() == f"{NAME}\n6 of 9 faces, those longest in sight"
    assert [axes.get_title(loc="left") for axes in panels(figures[0])] == [*(f"face {n}" for n in range(3, 9))]
    assert len(planes(figures[1])) == 6


def test_nobody_and_a_single_row(figures, tmp_path):
    plot_timeline(film({}, 100), tmp_path / "a.png")
    (series,) = panels(figures[0])
    assert bands(series)["voice only"] == [(0.0, 3.333)]
    single = Timeline.from_rows([row(0, valence=0.5, arousal=-0.25)])
    plot_timeline(single, tmp_path / "b.png")
    plot_circumplex(single, tmp_path / "c.png")
    (series,), (plane,) = panels(figures[1]), planes(figures[1])
    dots = {line.get_color(): line.get_xydata().tolist() for line in series.lines if line.get_marker() == "o"}
    assert dots == {COLORS["valence"]: [[0.0, 0.5]], COLORS["arousal"]: [[0.0, -0.25]]}
    assert [[0.5, -0.25]] in [points.get_offsets().tolist() for points in plane.collections]
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_labels_and_shares_are_those_of_the_frames(figures, tmp_path):
    timeline = film({0: (0, 100), 1: (50, 200)}, 200)
    labels = np.stack([np.linspace(-1, 1, 150), np.full(150, 0.5)], axis=1).astype(np.float32)
    labels[80:90] = -5
    shares = np.linspace(0, 1, 400).reshape(200, 2)
    plot_timeline(timeline.of_face(1), tmp_path / "a.png", labels=labels, audio_share=shares)
    (series,) = panels(figures[0])
    annotated = next(line for line in series.lines if line.get_label() == "valence, annotated").get_xydata()
    assert stretches(annotated) == [(1.667, 2.633), (3.0, 4.967)]  # from frame 50; a gap; the labels end at 150
    assert annotated[0, 1] == pytest.approx(labels[50, 0])
    below = next(axes for axes in figures[0].axes if axes.get_ylabel() == "owed to")
    for index, name in enumerate(COLORS):
        (share,) = (line for line in below.lines if line.get_color() == COLORS[name])
        assert share.get_ydata() == pytest.approx(shares[50:, index])
    for options in ({"labels": labels}, {"audio_share": shares}):
        with pytest.raises(
            ValueError, match=r"belong to one face, and the timeline is of 2: choose one with timeline.of_fa"
        ):
            plot_timeline(timeline, tmp_path / "b.png", **options)


def test_three_hours(figures, tmp_path):
    num_frames = 3 * 3600 * 30
    frames = np.arange(num_frames)
    columns = {
        "time": frames / 30,
        "frame": frames,
        "valence": np.sin(frames / 1e4) / 2,
        "arousal": np.cos(frames / 3e4),
    }
    columns["valence"][200_000] = -0.95  # one frame must be seen
    columns |= {"box": np.full((num_frames, 4), np.nan), "face_quality": np.full(num_frames, np.nan)}
    columns |= dict.fromkeys(("face_detected", "audio_present"), np.ones(num_frames, bool))
    face = np.where((frames > 100_000) & (frames < 150_000), -1, 0)
    timeline = Timeline(face=face, name="long", fps=30.0, **columns)
    plot_timeline(timeline, tmp_path / "a.svg")
    (series,), (plane,) = panels(figures[0]), planes(figures[0])
    drawn = lines(series, "valence", "-")
    line = drawn[max(drawn)]
    assert len(line) < 10_000
    assert line[np.nanargmin(line[:, 1])] == pytest.approx([200_000 / 30, -0.95])
    assert stretches(line) == [(0.0, 3333.333), (5000.0, 10799.967)]
    (path,) = (part for part in plane.collections if isinstance(part, LineCollection))
    assert 1000 < len(path.get_segments()) < 5000
    assert max(np.abs(np.diff(segment, axis=0)).max() for segment in path.get_segments()) < 0.1  # none across the gap
    assert series.get_xlabel() == "time (h:min)"
    ticks = {tick.get_position()[0]: tick.get_text() for tick in series.get_xticklabels()}
    assert [ticks[seconds] for seconds in (0, 1200, 3600, 10800)] == ["0:00", "0:20", "1:00", "3:00"]
    assert (tmp_path / "a.svg").stat().st_size < 2_000_000
    plot_timeline(timeline.slice(stop=600), tmp_path / "b.png")
    assert panels(figures[1])[0].get_xlabel() == "time (min)"


def test_circumplex(figures, tmp_path):
    rows = [row(frame, valence=0.8, arousal=0.2, fps=30) for frame in range(10)]  # 0.3 s at one place
    rows += [row(frame, valence=-0.4, arousal=-0.6, fps=30) | {"time": 0.3 + (frame - 10) / 3} for frame in (10, 11)]
    rows += [row(12, None, 0.1, 0.1) | {"time": 1.2}]
    plot_circumplex(Timeline.from_rows(rows, name=NAME), tmp_path / "a.png")
    (plane,) = planes(figures[0])
    (path,) = (part for part in plane.collections if isinstance(part, LineCollection))
    assert len(path.get_segments()) == 11  # none from the face to the voice
    mean = plane.lines[-1].get_xydata()[0] if plane.lines[-1].get_marker() == "P" else None
    assert mean is not None
    weights = np.diff([row["time"] for row in rows], append=1.2 + 1 / Timeline.from_rows(rows).fps)
    assert mean == pytest.approx([np.average([row[name] for row in rows], weights=weights) for name in COLORS])
    spent = plane.collections[0].get_array()
    assert np.unravel_index(np.nanargmax(spent), spent.shape) == (4, 6)  # not where most frames are
    assert f"mean {mean[0]:+.2f}, {mean[1]:+.2f}" in plane.get_title()

    plot_circumplex(film({0: (0, 160), 1: (120, 240)}, 300), tmp_path / "b.png")
    titles = [axes.get_title().split("   ")[0] for axes in planes(figures[1])]
    assert titles == ["face 0", "face 1", "voice only"]
    colors = [
        tuple(np.round(part.get_clim(), 3))
        for axes in planes(figures[1])
        for part in axes.collections
        if part.get_cmap().name == "viridis"
    ]
    assert set(colors) == {(0.0, 10.0)}  # one colour is one time in all
