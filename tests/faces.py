"""Drawn faces, of people who can be told apart, at any place and size of a picture. The face detector finds them."""

from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

from jca import synthetic


PEOPLE = (5, 11, 24)  # long black hair; short fair hair; red hair
NEUTRAL = {"roll": 0.0, "yaw": 0.0, "smile": 0.0, "frown": 0.0, "cheek": 0.0, "lid": 0.9, "brow": 0.0, "open": 0.2}


def draw_face(
    picture: np.ndarray, person: int, center: tuple[float, float], height: float, **changes: float
) -> np.ndarray:
    """
    Paint head, neck and shoulders into a `(height, width, 3)` uint8 picture, in place; what lies outside is cut off.

    Args:
        person: a seed of the looks: the same number is the same person. `PEOPLE` differ much and are found in any mood.
        center: x, y of the middle of the head, px.
        height: of the head, px.
        changes: to `NEUTRAL`: `roll` (rad), `yaw` (px of a head of 100), `smile` and `frown` (-1 to 1), `cheek`, `open` (the
            mouth, 0 to 1), `lid` (0 is a closed eye), `brow` (how far it is raised).

    Returns:
        landmarks `(5, 2)` px: middles of the eyes, tip of the nose, corners of the mouth, from the picture's left.
    """
    subject = synthetic.draw_subject(np.random.default_rng(person))
    middle = np.array([synthetic.WIDTH, synthetic.HEIGHT]) / 2
    face = {"x": middle[0], "y": middle[1], "hidden": 0.0, **NEUTRAL, **changes}
    face = SimpleNamespace(**{name: np.full((1, 1, 1), value, np.float32) for name, value in face.items()})
    grounds = [np.full((3, 1, synthetic.HEIGHT, synthetic.WIDTH), value, np.float32) for value in (0, 255)]
    for ground in grounds:
        synthetic.draw_face(ground, subject, face)
    on_black, on_white = (ground[:, 0] for ground in grounds)
    layers = np.concatenate([on_black, 1 - (on_white - on_black)[:1] / 255])  # colour x opacity, and the opacity

    scale = height / (2 * subject.head[1] * subject.scale)
    size = round(synthetic.HEIGHT * scale), round(synthetic.WIDTH * scale)
    layers = F.interpolate(torch.from_numpy(layers)[None], size, mode="bilinear", antialias=True)[0].numpy()
    top, left = round(center[1] - size[0] / 2), round(center[0] - size[1] / 2)
    layers = layers[:, max(0, -top) :, max(0, -left) :]
    place = picture[max(0, top) : max(0, top + size[0]), max(0, left) : max(0, left + size[1])]
    *colour, opacity = layers[:, : place.shape[0], : place.shape[1], None]
    place[:] = np.round(np.concatenate(colour, 2) + (1 - opacity) * place)

    face = SimpleNamespace(**{**NEUTRAL, **changes})
    mouth = subject.mouth_width * (1 + 0.15 * face.smile), synthetic.MOUTH_V - 0.6 * (7 + face.smile) * face.smile
    points = np.array([(-subject.eye_u, synthetic.EYE_V), (subject.eye_u, synthetic.EYE_V), (0, 8), mouth, mouth])
    points[3, 0] *= -1
    turn = np.array([[np.cos(face.roll), np.sin(face.roll)], [-np.sin(face.roll), np.cos(face.roll)]])
    points = subject.scale * points @ turn + (face.yaw, 0) + middle + 0.5
    return points * (size[1] / synthetic.WIDTH, size[0] / synthetic.HEIGHT) + (left, top)
