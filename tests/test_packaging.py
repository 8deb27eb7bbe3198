import os
import subprocess
import sys
import zipfile
from pathlib import Path

from transformers import pipeline


ROOT = Path(__file__).parents[1]


def test_wheel_holds_exactly_the_package(tmp_path):
    source = tmp_path / "source"  # setuptools leaves its build folder beside what it builds
    source.mkdir()
    for name in subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        str(tmp_path),
    ]
    run = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("jca-*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {f"jca/{path.name}" for path in (ROOT / "jca").glob("*.py")}
    flat = {path.name for path in ROOT.glob("*_jca.py")}
    templates = {f"jca/templates/{path.name}" for path in (ROOT / "jca/templates").glob("*.md")}
    assert len(templates) == 2
    assert names == modules | flat | templates | {"jca/py.typed"}
    metadata = zipfile.ZipFile(wheel).read(f"{wheel.name.split('-py3')[0]}.dist-info/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert not [
        line for line in required if any(name in line for name in ("torchvision", "torchaudio", "torchcodec", "pillow"))
    ]


BARE = """
import importlib, json, pkgutil, sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        hidden = ("PIL", "torchvision", "torchaudio", "torchcodec", "matplotlib")
        return None if name.split(".")[0] in hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import jca
for module in pkgutil.iter_modules(jca.__path__):
    importlib.import_module(f"jca.{module.name}")
from transformers import pipeline
print("ROWS" + json.dumps(pipeline("audio-visual-emotion", model=sys.argv[1])(sys.argv[2])))
from jca.plots import plot_timeline
try:
    plot_timeline([], "x.png")
except ImportError as error:
    print(error)
"""


def test_works_without_pillow_torchvision_torchaudio_torchcodec_and_matplotlib(model_folder, silent_video):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BARE, model_folder, silent_video]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    rows = run.stdout.split("ROWS")[1]
    assert rows.startswith("[{")
    assert rows.count('"frame"') == len(pipeline("audio-visual-emotion", model=model_folder)(silent_video))
    assert "Pictures need Matplotlib: pip install 'jca[plots]'" in run.stdout


def test_importing_jca_is_enough_for_the_auto_classes():
    code = "import jca; from transformers import AutoConfig; print(type(AutoConfig.for_model('jca')).__module__)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert run.stdout.strip() == "configuration_jca", run.stderr


def test_flat_modules_stand_on_their_own():
    """They travel with checkpoints: no `jca`, no postponed annotations, which Transformers' configurations can not read."""
    for path in ROOT.glob("*_jca.py"):
        text = path.read_text()
        assert "from jca" not in text
        assert "import jca" not in text
        assert "from __future__" not in text


def test_importing_costs_little_beside_what_is_imported():
    run = [sys.executable, "-X", "importtime", "-c", "import jca"]
    lines = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT).stderr.splitlines()
    own = everything = 0
    for line in lines:
        if line.startswith("import time:") and "self" not in line:
            microseconds, _, name = (part.strip() for part in line.removeprefix("import time:").split("|"))
            everything += int(microseconds)
            own += int(microseconds) if name.split(".")[0] == "jca" or name.endswith("_jca") else 0
    assert 0 < own <= 0.5 * (everything - own)
    assert not [
        line for line in lines if line.endswith((" gradio", " matplotlib", " openvino", " onnxruntime", " datasets"))
    ]
