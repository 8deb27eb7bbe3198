import os
import signal
import sys
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded: models and media are made here
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small lose by threads, tenfold beside other work
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# a shell without job control lets what runs in the background ignore Ctrl-C, and all that it starts; some tests send one
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from media import clapping_video, write_video

import jca


TINY_VIDEO = {"model_type": "r2plus1d", "stem_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
TINY_AUDIO = {
    "model_type": "resnet",
    "num_channels": 1,
    "embedding_size": 4,
    "hidden_sizes": [4, 8],
    "depths": [1, 1],
    "layer_type": "basic",
}
TINY = {
    "video_config": TINY_VIDEO,
    "audio_config": TINY_AUDIO,
    "projection_size": 8,
    "attention_size": 4,
    "regressor_size": 8,
}


def tiny_config(**changes) -> jca.JCAConfig:
    return jca.JCAConfig(**{**TINY, **changes})


def tiny_model(seed: int = 0, **changes) -> jca.JCAModel:
    torch.manual_seed(seed)
    return jca.JCAModel(tiny_config(**changes)).eval()


def tiny_processor(**changes) -> jca.JCAProcessor:
    return jca.JCAProcessor(video_processor=jca.JCAVideoProcessor(**{"size": 16, "faces": "center", **changes}))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> str:
    """A saved tiny model with its processor, as `save_pretrained` leaves it."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def video(tmp_path_factory) -> str:
    """20 s at 30 frames a second with sound: two blocks of windows."""
    return clapping_video(tmp_path_factory.mktemp("video") / "a b ü.mp4", seconds=20, claps=(3, 7, 15))


@pytest.fixture(scope="session")
def silent_video(tmp_path_factory) -> str:
    return write_video(tmp_path_factory.mktemp("silent") / "silent.mp4", num_frames=40)
