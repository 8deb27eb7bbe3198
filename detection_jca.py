"""A picture -> the faces in it: boxes, five landmarks and scores, by MTCNN (arXiv 1604.02878) in plain torch.

The weights (496 thousand numbers, MIT licence) are those in the wheel of the package `mtcnn`: its files are read, but it is
never imported, and nothing is unpickled.

Positions are px of the picture, and continuous: the first pixel is from 0 to 1, a picture's own box (0, 0, width, height).
"""

import importlib.util
import io
import math
import pickletools
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


try:  # unpacks the weights of MTCNN; other detectors do without
    import lz4.frame as lz4_frame
except ImportError:
    lz4_frame = None

# px of the networks' squares by which boxes lie too far left, and are taken to lie too high: in a mirrored picture they come
# out 0.8 to 1.3 px elsewhere; put right, faces score higher
BOX_SHIFT = 0.5
MAX_CANDIDATES = 2000  # of which the overlap of each with each is computed; far more than faces


class Detections(NamedTuple):
    """
    The faces of a picture, best first.

    Attributes:
        boxes: `(faces, 4)` float32, x0, y0, x1, y1 in px; at an edge they may reach beyond the picture.
        landmarks: `(faces, 5, 2)` float32, x, y in px: eye at the picture's left, eye at its right, nose, corner of the
            mouth at the left, corner at the right.
        scores: `(faces,)` float32 in [0, 1].
    """

    boxes: np.ndarray
    landmarks: np.ndarray
    scores: np.ndarray


class Detector(Protocol):
    """
    Whatever finds faces: a callable like this one.

    One that also has `refine(picture, boxes) -> Detections` need not search every picture of a video: it says for each of
    the `(faces, 4)` boxes, in their order, where that face is now, with a low score if it is none any more.
    """

    def __call__(self, picture: np.ndarray) -> Detections:
        """The faces of a `(height, width, 3)` uint8 RGB picture."""


class MTCNN:
    """
    Multi-task cascaded convolutional networks: P-Net proposes, R-Net sorts out, O-Net decides and sets the landmarks.

    Runs on the CPU, in float32; all instances share the weights.

    Args:
        long_side: px to which the longer side of a larger picture is shrunk for P-Net and R-Net. O-Net, from which boxes
            and landmarks come, sees the picture itself.
        min_face: px, side of the smallest face that is looked for, in the shrunk picture.
        thresholds: least scores of P-Net, R-Net and O-Net.

    Raises:
        ImportError: if the package `mtcnn` or `lz4` is not installed.
        ValueError: if its files hold something else than the weights of `mtcnn` 1.0, or a size is not above 0.
    """

    def __init__(
        self,
        long_side: float = 320,
        min_face: float = 20,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.85),
    ):
        if not (long_side > 0 and min_face > 0):
            raise ValueError(f"long_side={long_side}, min_face={min_face}: both are px, and above 0.")
        self.long_side, self.min_face, self.thresholds = long_side, min_face, thresholds
        networks()

    @torch.inference_mode()
    def __call__(self, picture: np.ndarray) -> Detections:
        """
        The faces of a `(height, width, 3)` uint8 RGB picture; without any, arrays of no rows.

        Raises:
            ValueError: if the picture has another shape or type.
        """
        pixels = to_pixels(picture)
        pnet, rnet, onet = networks()
        height, width = pixels.shape[2:]
        shrink = min(1.0, self.long_side / max(height, width))
        small = resize(pixels, max(1, round(height * shrink)), max(1, round(width * shrink)))

        boxes, scores = look(rnet, small, self.propose(pnet, small))
        boxes = boxes[select(boxes, scores, 0.7, self.thresholds[1])] * ratio(small, pixels)
        # O-Net looks twice: in better squares less passes that is no face, and the landmarks depend half as much on how the
        # face lies in P-Net's grid
        for _ in range(2):
            boxes, landmarks, scores = look(onet, pixels, boxes)
            faces = select(boxes, scores, 0.5, self.thresholds[2])
            boxes, landmarks, scores = boxes[faces], landmarks[faces], scores[faces]
        return Detections(boxes.numpy(), landmarks.numpy(), scores.numpy())

    @torch.inference_mode()
    def refine(self, picture: np.ndarray, boxes: np.ndarray) -> Detections:
        """
        Where the faces in given boxes are now: O-Net alone, in a fraction of the time of a search.

        A face may have moved by a third of its width since. Boxes that come from one picture's `refine` go into the next's:
        they do not drift.

        Args:
            picture (`np.ndarray` of shape `(height, width, 3)`): uint8 RGB.
            boxes (`np.ndarray` of shape `(faces, 4)`): px.

        Returns:
            an entry for each box, in their order. The score is low where no face is.

        Raises:
            ValueError: if the picture or the boxes have another shape or type, or a box is not finite.
        """
        pixels, boxes = to_pixels(picture), np.asarray(boxes, np.float32)
        if not (boxes.ndim == 2 and boxes.shape[1] == 4 and np.isfinite(boxes).all()):
            raise ValueError(
                f"boxes of shape {boxes.shape}: refine takes (faces, 4) finite numbers, x0, y0, x1, y1 in px."
            )
        return Detections(*(part.numpy() for part in look(networks()[2], pixels, torch.tensor(boxes))))

    def propose(self, pnet: "Network", pixels: torch.Tensor) -> torch.Tensor:
        """Boxes `(faces, 4)` (px) in a picture `(1, 3, height, width)` uint8 that may hold a face, of all sizes: P-Net at
        scales in steps of 1/sqrt(2)."""
        height, width = pixels.shape[2:]
        scale, levels = pnet.size / self.min_face, []
        margin = pnet.size // 3  # px of black around a level: windows reach beyond it, as faces at its edge do
        while min(height, width) * scale + margin >= pnet.size:
            levels.append(resize(pixels, math.ceil(height * scale), math.ceil(width * scale)))
            scale *= math.sqrt(0.5)
        if not levels:
            return torch.zeros(0, 4)
        sheet, places = on_one_sheet(levels, margin)
        offsets, scores = (part[0] for part in pnet(sheet))
        found = []
        for level, place in zip(levels, places, strict=True):
            # P-Net's stride is 2
            rows, columns = (slice(at.start // 2, (at.stop - pnet.size) // 2 + 1) for at in place)
            of_level = scores[rows, columns]
            y, x = torch.nonzero(of_level >= self.thresholds[0], as_tuple=True)
            start, offset = 2 * torch.stack([x, y], 1) - margin, offsets[:, rows, columns][:, y, x].T
            boxes = torch.cat([start, start + pnet.size], 1) + pnet.size * offset + BOX_SHIFT
            boxes *= ratio(level, pixels)
            kept = select(boxes, of_level[y, x], 0.5)
            found.append((boxes[kept], of_level[y, x][kept]))
        boxes, scores = (torch.cat(part) for part in zip(*found, strict=True))
        return boxes[select(boxes, scores, 0.7)]


def look(network: "Network", pixels: torch.Tensor, boxes: torch.Tensor) -> list[torch.Tensor]:
    """
    What R-Net or O-Net make of boxes in a picture.

    Args:
        pixels (`torch.Tensor` of shape `(1, 3, height, width)`): uint8.
        boxes (`torch.Tensor` of shape `(faces, 4)`): px.

    Returns:
        the boxes corrected `(faces, 4)`, landmarks `(faces, 5, 2)` in px if it is O-Net, scores `(faces,)` in [0, 1].
    """
    boxes = squares(boxes, 2 * max(pixels.shape[2:]))
    start, side = boxes[:, :2], boxes[:, 2:3] - boxes[:, :1]
    crops = [crop(pixels, box, network.size) for box in boxes.int().tolist()]
    offsets, *positions, scores = network(torch.cat([pixels.new_empty(0, 3, network.size, network.size), *crops]))
    positions = [part.unflatten(1, (2, 5)).transpose(1, 2) for part in positions]  # five x, then five y
    return [
        boxes + side * (offsets + BOX_SHIFT / network.size),
        *(start[:, None] + side[:, None] * part for part in positions),
        scores,
    ]


# Pixels and boxes ----------------------------------------------------------------------------------------------------


def to_pixels(picture: np.ndarray) -> torch.Tensor:
    """
    A `(height, width, 3)` uint8 array as `(1, 3, height, width)`, in place if it can be.

    Raises:
        ValueError: if it has another shape or type, or no pixels.
    """
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(
            f"A picture of shape {picture.shape} and type {picture.dtype}: faces are found in (height, width, 3) uint8 RGB."
        )
    return torch.from_numpy(np.require(picture, requirements=["C", "W"])).permute(2, 0, 1)[None]


def resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`(batch, channels, h, w)` to `(batch, channels, height, width)`: bilinear, antialiased."""
    if pixels.shape[2:] == (height, width):
        return pixels
    return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)


def on_one_sheet(levels: list[torch.Tensor], margin: int) -> tuple[torch.Tensor, list[tuple[slice, slice]]]:
    """
    Pictures in one, so that a network goes over all of them at once, which costs less than one after the other.

    Args:
        levels (list of `torch.Tensor` of shape `(1, channels, h, w)`): the largest first.
        margin: px of black around each.

    Returns:
        `(1, channels, height, width)`, and the rows and columns of each with its margins, which begin and end at even px.
    """
    sides = [[2 * math.ceil(side / 2 + margin) for side in level.shape[2:]] for level in levels]
    free, height, places = [], 0, []  # of each shelf: where it has room and where it begins
    for level_height, level_width in sides:
        shelf = next((shelf for shelf in free if shelf[0] + level_width <= sides[0][1]), None)
        if shelf is None:
            free.append(shelf := [0, height])
            height += level_height
        left, top = shelf
        shelf[0] += level_width
        places.append((slice(top, top + level_height), slice(left, left + level_width)))
    sheet = levels[0].new_zeros(1, levels[0].shape[1], height, sides[0][1]).to(memory_format=torch.channels_last)
    for level, (rows, columns) in zip(levels, places, strict=True):
        inside = sheet[:, :, rows.start + margin :, columns.start + margin :]
        inside[:, :, : level.shape[2], : level.shape[3]] = level
    return sheet, places


def ratio(of: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """Factors `(4,)` that take boxes from one picture `(batch, channels, h, w)` to the same of another size, also
    `(batch, channels, h, w)`."""
    return torch.tensor([t / o for o, t in zip(of.shape[:1:-1], to.shape[:1:-1], strict=True)] * 2)


def squares(boxes: torch.Tensor, longest: int) -> torch.Tensor:
    """Squares `(faces, 4)` with the longer side of boxes `(faces, 4)` around the middle of them, from 1 to `longest` px; in
    whole px, so that a crop is exactly that."""
    side = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True).round().clamp(1, longest)
    start = ((boxes[:, :2] + boxes[:, 2:] - side) / 2).round()
    return torch.cat([start, start + side], 1)


def crop(pixels: torch.Tensor, box: list[int], size: int) -> torch.Tensor:
    """What a picture `(1, 3, height, width)` has in a box (x0, y0, x1, y1 in px), as `(1, 3, size, size)`; black where it is
    outside of the picture."""
    x0, y0, x1, y1 = box
    height, width = pixels.shape[2:]
    part = pixels[:, :, max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    if not part.numel():
        return pixels.new_zeros(1, 3, size, size)
    outside = [max(edge, 0) for edge in (-x0, x1 - width, -y0, y1 - height)]
    return resize(F.pad(part, outside) if any(outside) else part, size, size)


def select(boxes: torch.Tensor, scores: torch.Tensor, overlap: float, threshold: float = 0.0) -> torch.Tensor:
    """
    Non-maximum suppression: which boxes have a score of `threshold` or more and share with no better one more than `overlap`
    of what both cover, the best first.

    Args:
        boxes (`torch.Tensor` of shape `(faces, 4)`): px.
        scores (`torch.Tensor` of shape `(faces,)`): in [0, 1].
        overlap: a share of the union, in [0, 1].

    Returns:
        `torch.LongTensor` of shape `(kept,)`: their places, of the `MAX_CANDIDATES` best.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= threshold][:MAX_CANDIDATES]
    start, stop = boxes[order].numpy().reshape(-1, 2, 2).swapaxes(0, 1)
    common = (np.minimum(stop[:, None], stop) - np.maximum(start[:, None], start)).clip(0).prod(2)
    area = (stop - start).clip(0).prod(1)
    keep = np.ones(len(order), bool)
    for index, too_much in enumerate(common > overlap * (area[:, None] + area - common)):
        if keep[index]:
            keep[index + 1 :] &= ~too_much[index + 1 :]
    return order[torch.from_numpy(keep)]


# Networks ------------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """
    One of the three networks: heads on a trunk.

    Args:
        size: px, side of the square that it judges.
        trunk: its layers.
        heads: in the order of the weight files: the box, in O-Net the landmarks, no face or face.
    """

    def __init__(self, size: int, trunk: list[nn.Module], heads: list[nn.Module]):
        super().__init__()
        self.size, self.trunk, self.heads = size, nn.Sequential(*trunk), nn.ModuleList(heads)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """
        Args:
            pixels (`torch.Tensor` of shape `(batch, 3, size, size)`): uint8. P-Net takes any height and width, and its
                outputs have `(rows, columns)` behind.

        Returns:
            offsets of the corners `(batch, 4)` and, of O-Net, positions of the landmarks `(batch, 10)`, five x and five y,
            both in sides of the square; scores `(batch,)` in [0, 1].
        """
        hidden = self.trunk((pixels.float() - 127.5) / 128)
        *outputs, logits = [head(hidden) for head in self.heads]
        return [*outputs, logits.softmax(1)[:, 1]]


class FlattenColumns(nn.Module):
    """`(batch, channels, h, w)` to `(batch, w * h * channels)`, in this order, as the trained weights expect it."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.permute(0, 3, 2, 1).flatten(1)


def convolution(in_channels: int, out_channels: int, size: int, pool: int = 0) -> list[nn.Module]:
    """Convolution, PReLU and, if `pool` is not 0, maximum over `pool` x `pool`, every second."""
    layers = [nn.Conv2d(in_channels, out_channels, size), nn.PReLU(out_channels)]
    return [*layers, nn.MaxPool2d(pool, 2, ceil_mode=True)] if pool else layers


@lru_cache(maxsize=1)
def networks() -> tuple[Network, Network, Network]:
    """
    P-Net, R-Net and O-Net with their weights, read once.

    Raises:
        ImportError: if the package `mtcnn` or `lz4` is not installed.
        ValueError: see [`load_weights`].
    """
    package = importlib.util.find_spec("mtcnn")  # found, not imported: that would ask for TensorFlow
    if lz4_frame is None or package is None or not package.submodule_search_locations:
        raise ImportError("MTCNN reads its weights from the package mtcnn, packed by lz4: `pip install mtcnn lz4`.")
    pnet = Network(
        12,
        [*convolution(3, 10, 3, pool=2), *convolution(10, 16, 3), *convolution(16, 32, 3)],
        [nn.Conv2d(32, 4, 1), nn.Conv2d(32, 2, 1)],
    )
    rnet = Network(
        24,
        [
            *convolution(3, 28, 3, pool=3),
            *convolution(28, 48, 3, pool=3),
            *convolution(48, 64, 2),
            FlattenColumns(),
            nn.Linear(576, 128),
            nn.PReLU(128),
        ],
        [nn.Linear(128, 4), nn.Linear(128, 2)],
    )
    onet = Network(
        48,
        [
            *convolution(3, 32, 3, pool=3),
            *convolution(32, 64, 3, pool=3),
            *convolution(64, 64, 3, pool=2),
            *convolution(64, 128, 2),
            FlattenColumns(),
            nn.Linear(1152, 256),
            nn.PReLU(256),
        ],
        [nn.Linear(256, 4), nn.Linear(256, 10), nn.Linear(256, 2)],
    )
    folder = Path(package.submodule_search_locations[0]) / "assets" / "weights"
    for name, network in {"pnet": pnet, "rnet": rnet, "onet": onet}.items():
        load_weights(network, folder / f"{name}.lz4")
        network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # three times as fast
    return pnet, rnet, onet


@torch.no_grad()
def load_weights(network: Network, file: Path) -> None:
    """
    Copy the arrays of a file into the parameters, which are in the same order and have the same shapes.

    Raises:
        ValueError: if the file can not be read or holds something else.
    """
    try:
        arrays = list(read_arrays(lz4_frame.decompress(file.read_bytes())))
        for parameter, array in zip(network.parameters(), arrays, strict=True):
            if array.ndim == 3:  # the slopes of a PReLU, (1, 1, channels)
                array = array.reshape(-1)
            # Keras has (height, width, in, out) and (in, out)
            array = torch.from_numpy(array.copy())
            array = array.permute(3, 2, 0, 1) if array.ndim == 4 else array.T if array.ndim == 2 else array
            if array.shape != parameter.shape:
                raise ValueError(f"{tuple(array.shape)} where {tuple(parameter.shape)} belongs")
            parameter.copy_(array)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} does not hold the weights of mtcnn 1.0 ({error}): `pip install --force-reinstall mtcnn==1.0.0 lz4`."
        ) from error


def read_arrays(data: bytes) -> Iterator[np.ndarray]:
    """
    The float32 arrays in what `joblib.dump` wrote, in their order and each of its own shape, `(height, width, in, out)`,
    `(1, 1, channels)`, `(in, out)` or `(out,)`. The pickle around them is scanned, not executed.

    In place of each array joblib pickles a `NumpyArrayWrapper`; its first tuple is the shape, and behind its BUILD follow a
    byte that says how many bytes of padding come, these, and the array's own (joblib/numpy_pickle.py).
    """
    stream = io.BytesIO(data)
    shape: Any = None
    numbers, previous = [], ""
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name == "NEWOBJ":
            numbers, shape = [], None
        elif operation.name.startswith("BININT"):
            numbers.append(argument)
        elif operation.name.startswith("TUPLE") and shape is None:
            shape = tuple(numbers)
        elif operation.name == "BUILD" and previous == "SETITEMS":
            stream.seek(int.from_bytes(stream.read(1), "little"), io.SEEK_CUR)
            yield np.frombuffer(stream.read(4 * math.prod(shape)), "<f4").reshape(shape)
        previous = operation.name
