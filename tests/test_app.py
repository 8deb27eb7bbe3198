"""The page of `app/` in a real browser: started as on the Hub and as from the repository."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from importlib.metadata import requires, version
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_model, tiny_processor
from faces import draw_face
from huggingface_hub import RepoCard
from media import CLAPPING, VPX, write_media, write_video
from packaging.requirements import Requirement
from transformers import pipeline

from jca.timeline import FORMATS, Timeline
from media_jca import decode
from sources_jca import IncompleteMediaWarning, MediaError, open_media


ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "app"
CHROMIUMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A tiny model that looks for faces, with a card."""
    folder = tmp_path_factory.mktemp("app") / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_processor(faces="detect").save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nIts weights are **random**.", encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> str:
    """6 s with sound: nobody for a second, then somebody who moves, beside whom there is another from 2 to 5."""
    nobody = np.full((180, 320, 3), (90, 110, 120), np.uint8)
    one, two = nobody.copy(), nobody.copy()
    for picture in (one, two):
        draw_face(picture, 4, (90, 90), 110)
    draw_face(two, 11, (240, 95), 100)

    def picture(index):
        there = nobody if index < 30 else two if 60 <= index < 150 else one
        return np.ascontiguousarray(np.roll(there, index // 10, axis=1))

    waveform = np.random.default_rng(0).normal(0, 0.1, 44100 * 6).astype(np.float32)
    path = tmp_path_factory.mktemp("people") / "two people ü.mp4"
    return write_video(path, 180, size=(320, 180), picture=picture, waveform=waveform)


@pytest.fixture(scope="module")
def expected(model, people) -> Timeline:
    return Timeline.from_rows(pipeline("audio-visual-emotion", model=model)(people))


@pytest.fixture(scope="module")
def browser():
    if not os.environ.get("JCA_BROWSER"):
        pytest.skip("a browser that plays videos wants the cores for itself: make browser page")
    playwright = pytest.importorskip("playwright.sync_api", reason="the page needs a browser: pip install playwright")
    program = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if program is None:
        pytest.skip("the page needs a browser: apt-get install chromium-headless-shell, or any Chromium or Chrome")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def serve(app: Path, *arguments: str, files: Path, **environment: str):
    """The address of the page, run by `app`; `files` holds what it is given. Whatever leaves the machine fails the test."""
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        proxy = f"http://127.0.0.1:{elsewhere.getsockname()[1]}"
        environment |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), proxy)
        environment |= {"NO_PROXY": "127.0.0.1,localhost", "GRADIO_TEMP_DIR": str(files), "PYTHONUNBUFFERED": "1"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GRADIO_"))}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, app, "--port", str(port), *arguments],
            env={**inherited, **environment},
            cwd=files,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if "Running on local URL" in line:
                    break
            else:
                pytest.fail("".join(said))
            yield f"http://127.0.0.1:{port}"
            elsewhere.setblocking(False)
            with pytest.raises(BlockingIOError):  # nobody has called
                elsewhere.accept()
            process.send_signal(signal.SIGINT)
            assert "Traceback" not in process.communicate(timeout=60)[0]
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def address(tmp_path_factory, model):
    """Of the page of a Space: one folder with the files that app/README.md names, and the model in a variable."""
    space, files = tmp_path_factory.mktemp("space"), tmp_path_factory.mktemp("files")
    shutil.copytree(APP, space, dirs_exist_ok=True)
    shutil.copytree(ROOT / "jca", space / "jca")
    for file in ROOT.glob("*_jca.py"):
        shutil.copy(file, space)
    with serve(space / "app.py", files=files, JCA_MODEL=model) as address:
        yield address


@contextmanager
def opened(browser, address: str, **options):
    """The page in a window of its own, which asks nobody else for anything and has no error."""
    with browser.new_context(**options) as context:
        page, asked, errors = context.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#entry input[type=file]", state="attached")
        yield page
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
        assert errors == []


def give(page, file: str | Path) -> None:
    page.set_input_files("#entry input[type=file]", file)
    page.wait_for_selector(".player .now, #problem strong", timeout=120_000)


@pytest.fixture
def page(browser, address):
    with opened(browser, address, viewport={"width": 1280, "height": 900}) as page:
        yield page


@pytest.fixture
def shown(page, people):
    """The page with the timeline of the video."""
    give(page, people)
    page.wait_for_function("document.querySelector('.player video').readyState >= 2")
    return page


def seek(page, seconds: float) -> None:
    page.evaluate("seconds => { document.querySelector('.player video').currentTime = seconds }", seconds)
    page.wait_for_function(
        "seconds => document.querySelector('.now').innerText.startsWith(seconds)", arg=f"{seconds:.2f} s"
    )


def points(page, name: str) -> np.ndarray:
    """Of the line in the plot over time, `(points, 2)` px."""
    lines = page.eval_on_selector_all(
        f".series polyline.{name}", "lines => lines.map(line => line.getAttribute('points'))"
    )
    return np.array([point.split(",") for line in lines for point in line.split()], float)


# What is shown ----------------------------------------------------------------------------------------------------------


def test_the_lines_are_the_rows(shown, expected):
    assert expected.faces == [0, 1]
    assert f"The first of {len(expected)} rows" in shown.inner_text("body")
    assert shown.eval_on_selector_all(".faces label", "all => all.map(label => label.innerText.trim())") == [
        "face 0",
        "face 1",
        "voice only",
    ]
    assert shown.is_checked(".faces label:nth-child(1) input")  # who is longest in sight
    for label, face in (("face 1", 1), ("voice only", None), ("face 0", 0)):
        shown.check(f".faces label:has-text('{label}') input")
        rows = expected.of_face(face)
        for name in ("valence", "arousal"):
            x, y = points(shown, name).T
            assert len(x) == len(rows)
            for drawn, values in ((x, rows.time), (y, -getattr(rows, name))):
                slope, start = np.polyfit(values, drawn, 1)
                assert slope > 0
                np.testing.assert_allclose(
                    drawn, slope * values + start, atol=0.11
                )  # px, of which one digit is written
    means = expected.summary()["faces"][0]["valence"]
    assert f"valence {means['mean']:+.2f} ± {means['std']:.2f}" in shown.inner_text("li:has-text('face 0')")


def test_the_cursor_follows_the_video(shown, expected):
    rows = {row["frame"]: row for row in expected.of_face(0)}
    places = []
    for seconds in (3.0, 4.5, 1.5, 2.0):  # back, too
        seek(shown, seconds)
        frame = round(seconds * 30)
        now = shown.inner_text(".now").replace("−", "-")
        for name in ("valence", "arousal"):
            assert f"{name} {rows[frame][name]:+.2f}" in now
        assert shown.get_attribute(".now", "data-row") == str(frame)
        places.append(float(shown.get_attribute(".cursor", "x1")))
        dot = [float(shown.get_attribute(".series .valence.dot", name)) for name in ("cx", "cy")]
        np.testing.assert_allclose(dot, points(shown, "valence")[frame - min(rows)], atol=0.1)
        circle = [float(shown.get_attribute(".circumplex .dot", name)) for name in ("cx", "cy")]
        np.testing.assert_allclose(circle, (rows[frame]["valence"], -rows[frame]["arousal"]), atol=1e-6)
    np.testing.assert_allclose(np.diff(places), np.diff([3.0, 4.5, 1.5, 2.0]) * (places[1] - places[0]) / 1.5, atol=0.1)
    seek(shown, 0.2)
    assert "not in sight" in shown.inner_text(".now")

    # as the video plays it moves with every picture, not only four times a second, as browsers tell the time by themselves
    shown.evaluate("""() => {
        const video = document.querySelector(".player video");
        window.moves = 0;
        window.told = 0;
        video.addEventListener("timeupdate", () => window.told++);
        new MutationObserver(() => window.moves++).observe(document.querySelector(".cursor"), { attributeFilter: ["x1"] });
        video.play();
    }""")
    shown.wait_for_function("Number(document.querySelector('.now').dataset.row) > 45 && window.moves > window.told + 9")
    shown.evaluate("document.querySelector('.player video').pause()")

    box = shown.locator(".series").bounding_box()  # a click into the plot moves the video
    shown.mouse.click(box["x"] + places[0], box["y"] + box["height"] / 2)
    shown.wait_for_function("Math.abs(document.querySelector('.player video').currentTime - 3) < 0.05")


@pytest.mark.parametrize("name", ["audio_first.mp4", "audio_first.mkv", "variable_rate.mp4"])
def test_the_clock_is_the_rows(page, tmp_path, name):
    """The one white picture is at second 7 after the first, whenever that is in the file."""
    give(page, CLAPPING[name](tmp_path / name))

    def look(seconds: float) -> tuple[float, float]:
        """What the page says is shown at a second of the browser's clock, and how bright it is."""
        page.evaluate("seconds => { document.querySelector('.player video').currentTime = seconds }", seconds)
        page.wait_for_function("""() => {
            const video = document.querySelector(".player video");
            return !video.seeking && video.readyState >= 2;
        }""")
        return page.evaluate("""() => {
            const canvas = document.createElement("canvas").getContext("2d");
            canvas.drawImage(document.querySelector(".player video"), 0, 0);
            const now = parseFloat(document.querySelector(".now").innerText);
            return [now, canvas.getImageData(10, 10, 1, 1).data[0]];
        }""")

    start = 5 - look(5)[0]
    assert start == pytest.approx(1.5 if "audio_first" in name else 0, abs=0.01)
    for seconds, white in ((6.9, False), (7.01, True), (7.1, False)):
        now, brightness = look(start + seconds)
        assert now == pytest.approx(seconds, abs=0.011)
        assert (brightness > 128) == white


def test_boxes_are_on_the_faces(shown, expected):
    seek(shown, 4.0)
    boxes = shown.eval_on_selector_all(
        ".boxes rect",
        "all => all.map(box => ['x', 'y', 'width', 'height'].map(name => Number(box.getAttribute(name))))",
    )
    wanted = [row["box"] for row in expected if row["frame"] == 120]
    assert len(wanted) == 2
    np.testing.assert_allclose([(x, y, x + width, y + height) for x, y, width, height in boxes], wanted, atol=0.1)
    assert shown.get_attribute(".boxes", "viewBox") == "0 0 320 180"
    seek(shown, 1.5)
    assert shown.locator(".boxes rect").count() == 1


def test_files(shown, expected, tmp_path):
    suffixes = [*FORMATS, ".png", ".circumplex.png"]
    assert {".csv", ".jsonl", ".parquet", ".vtt", ".srt", ".eaf", ".TextGrid"} <= set(suffixes)
    for suffix in suffixes:
        with shown.expect_download() as download:
            shown.get_by_role("button", name=suffix[1:], exact=True).click()
        assert download.value.suggested_filename == f"two people ü{suffix}"
        download.value.save_as(tmp_path / f"file{suffix}")
        assert (tmp_path / f"file{suffix}").stat().st_size > 100
    for rows in (Timeline.read_csv(tmp_path / "file.csv"), Timeline.read_parquet(tmp_path / "file.parquet")):
        np.testing.assert_array_equal(rows.frame, expected.frame)
        np.testing.assert_array_equal(rows.face, expected.face)
        np.testing.assert_allclose(rows.valence, expected.valence, atol=2e-6)
        np.testing.assert_allclose(rows.arousal, expected.arousal, atol=2e-6)


def test_what_it_means_and_the_model_are_in_sight(page):
    text = page.inner_text("body")
    assert "not what somebody feels" in text
    assert "Not to be used to judge individuals" in text
    assert "300 s and 200 MB" in text
    page.click("text=The model, tiny")
    page.wait_for_selector("strong:has-text('random')")
    assert "drawn faces" not in text  # that is the demo's


def test_a_narrow_window(browser, address, people):
    with opened(browser, address, viewport={"width": 390, "height": 844}) as page:
        give(page, people)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        for part in (".player video", ".series", ".circumplex"):
            box = page.locator(part).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390


# What can not be used ---------------------------------------------------------------------------------------------------


def test_errors_can_be_read_and_another_video_given(page, model, people, tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("no video at all")
    long = write_video(tmp_path / "long.mp4", 302, fps=1)
    options = {"codec": "libvpx", "options": VPX, "container_options": {"live": "1"}}  # its header has no length
    live = write_media(tmp_path / "live.webm", lambda index: np.zeros((48, 64, 3), np.uint8), range(302), **options)
    with pytest.raises(MediaError) as error:
        pipeline("audio-visual-emotion", model=model)(str(text))
    cases = {text: str(error.value).replace(str(text), text.name), long: "302 s long", live: "longer than 300 s"}
    for file, said in cases.items():
        give(page, file)
        problem = page.inner_text("#problem")
        assert said in problem
        assert Path(file).name in problem
        assert "/" not in problem  # where files are is nobody's business
        page.click("#entry [aria-label=Clear]")
        page.wait_for_selector("#problem strong", state="detached")
    give(page, people)
    page.click("text=Another video")
    page.wait_for_selector(".player", state="detached")
    give(page, people)
    assert page.locator(".player .now").is_visible()


def test_a_video_that_the_browser_can_not_play(page, tmp_path):
    give(page, CLAPPING["old.avi"](tmp_path / "old.avi"))
    page.wait_for_selector("text=can not play the video")
    box = page.locator(".series").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function("Math.abs(Number(document.querySelector('.now').dataset.row) - 135) < 5")


def test_a_video_that_is_cut_off(page, tmp_path):
    whole = Path(CLAPPING["audio_first.mkv"](tmp_path / "whole.mkv")).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(IncompleteMediaWarning) as caught:
        list(decode(open_media(tmp_path / "cut.mkv"), 16000))
    give(page, tmp_path / "cut.mkv")
    assert str(caught[0].message).replace(str(tmp_path) + "/", "") in page.inner_text("body")


# As a program -----------------------------------------------------------------------------------------------------------


def test_from_the_repository_and_nothing_is_kept(browser, model, people, tmp_path):
    with serve(APP / "app.py", "--model", model, files=tmp_path) as address, opened(browser, address) as page:
        give(page, people)
        assert any(file.name == "two people ü.csv" for file in tmp_path.rglob("*.csv"))
    assert [file for file in tmp_path.rglob("*") if "two people" in file.name] == []


def test_without_a_model(tmp_path):
    shutil.copytree(APP, tmp_path / "app")
    command = [sys.executable, tmp_path / "app/app.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("JCA_MODEL", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(r"No model\. Name .* --model or .* JCA_MODEL, or make one with `make demo`", done.stderr)
    assert "Traceback" not in done.stderr


def test_the_space_installs_what_the_package_asks_for():
    card = RepoCard.load(APP / "README.md").data.to_dict()
    assert card["sdk_version"] == version("gradio")  # the one that is tested
    assert (APP / card["app_file"]).exists()
    ours = {}
    for line in requires("jca"):
        requirement = Requirement(line)
        ours.setdefault(requirement.name, requirement.specifier)
    lines = (APP / "requirements.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if not line.startswith("#"):
            requirement = Requirement(line)
            assert requirement.specifier == ours[requirement.name]
