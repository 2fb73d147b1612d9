"""Figure 4's parts: windows slid over a photograph, maps and masks made boxes, and their average precision."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.paper.budgets import OVERLAPS, THRESHOLDS
from benchmarks.paper.networks import Detector
from targets.runtime.components import components
from toolkit.baselines.boxes import boxes_of, detections, match, multibox_loss
from toolkit.data.batches import Normalisation, to_tensor
from toolkit.data.samples import Samples

STRIDE = 16  # pixels between the centres of two windows
LEAST = 16  # pixels; smaller components are specks of a mask's edge, and no network's to find
BATCH = 64

# (left, top, width, height, score), pixels
Box = tuple[float, float, float, float, float]


def slide(network: nn.Module, normalisation: Normalisation, image: NDArray[Any], size: int) -> NDArray[np.float32]:
    """A classifier's probability around every STRIDE-th pixel of `image` (H, W, C), edges mirrored: (rows, columns).

    Cell (i, j) is the answer to the window whose centre lies in the middle of the STRIDE x STRIDE pixels it stands for.
    """
    height, width = image.shape[:2]
    rows, columns = -(-height // STRIDE), -(-width // STRIDE)
    # The windows of the last row and column may reach beyond the photograph by a stride and half a window.
    before, after = size // 2, size // 2 + STRIDE
    padded = np.pad(image, ((before, after), (before, after), (0, 0)), mode="symmetric")
    network.eval()
    device = next(network.parameters()).device
    corners = [
        (STRIDE // 2 + row * STRIDE, STRIDE // 2 + column * STRIDE) for row in range(rows) for column in range(columns)
    ]
    answers: list[Tensor] = []
    for start in range(0, len(corners), BATCH):
        windows = np.stack([padded[r : r + size, c : c + size] for r, c in corners[start : start + BATCH]])
        with torch.inference_mode():
            logits = network(normalisation.apply(to_tensor(windows)).to(device))
        answers.append(torch.sigmoid(logits[:, 0]).cpu())
    return np.asarray(torch.cat(answers).view(rows, columns).numpy(), np.float32)


def spread(heat: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """The cells of `slide` as one probability a pixel (H, W), interpolated between their middles."""
    rows, columns = heat.shape
    whole = F.interpolate(
        torch.from_numpy(heat)[None, None], size=(rows * STRIDE, columns * STRIDE), mode="bilinear", align_corners=False
    )
    return np.asarray(whole[0, 0, : shape[0], : shape[1]].numpy(), np.float32)


def truth_boxes(mask: NDArray[np.bool_]) -> list[Box]:
    """The boxes of a mask's components, each with score 1."""
    return [(b.col, b.row, b.width, b.height, 1.0) for b in components(mask) if b.area >= LEAST]


def map_boxes(probability: NDArray[np.float32], threshold: float) -> list[Box]:
    """The boxes of what reaches `threshold` in a map (H, W), each with the highest probability in it."""
    found = components(probability >= np.float32(threshold), probability)
    return [(b.col, b.row, b.width, b.height, b.peak) for b in found if b.area >= LEAST]


def detector_boxes(network: nn.Module, normalisation: Normalisation, image: NDArray[Any]) -> list[Box]:
    """The boxes that SSD finds in `image` (H, W, C)."""
    assert isinstance(network, Detector)
    network.eval()
    device = next(network.parameters()).device
    with torch.inference_mode():
        offsets, scores = network(normalisation.apply(to_tensor(image[None])).to(device))
        (found,) = detections(offsets, scores, network.network.defaults)
    height, width = image.shape[:2]
    table = zip(found.boxes.cpu().tolist(), found.probabilities.cpu().tolist(), strict=True)
    return [(x * width, y * height, (r - x) * width, (b - y) * height, p) for (x, y, r, b), p in table]


def surest_at(boxes: Sequence[Box], row: int, column: int) -> float:
    """The score of the surest box over the midpoint of a pixel, 0 where there is none: SSD as a judge of pixels."""
    y, x = row + 0.5, column + 0.5
    return max((p for left, top, w, h, p in boxes if left <= x < left + w and top <= y < top + h), default=0.0)


class Boxes:
    """SSD's lesson: the multibox loss against the components of masks, compared by that loss."""

    def loss(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        assert isinstance(network, Detector)
        defaults = network.network.defaults
        wanted = [match(boxes_of(mask, LEAST), defaults) for mask in targets[:, 0].cpu().numpy() > 0.5]
        offsets, scores = network(images)
        return multibox_loss(
            offsets, scores, torch.stack([place for place, _ in wanted]), torch.stack([label for _, label in wanted])
        )

    @torch.inference_mode()
    def score(self, network: nn.Module, normalisation: Normalisation, samples: Samples) -> float:
        network.eval()
        device = next(network.parameters()).device
        images = normalisation.apply(to_tensor(samples.images)).to(device)
        targets = torch.from_numpy(samples.labels).float().unsqueeze(1)
        return -float(self.loss(network, images, targets))


def average_precision(
    truth: Sequence[Sequence[Box]], found: Sequence[Sequence[Box]], size: tuple[int, int]
) -> dict[str, float]:
    """AP of boxes at each of OVERLAPS, by COCO's own code: one list of boxes an image, `size` its height and width.

    At 1.0 a box counts only when it is the true one to the last pixel.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not any(found) or not any(truth):  # COCO's code can load no empty list
        return {f"{overlap:g}": 0.0 for overlap in OVERLAPS}
    with contextlib.redirect_stdout(io.StringIO()):  # it reports every step
        there = COCO()
        there.dataset = {
            "images": [{"id": i, "height": size[0], "width": size[1]} for i in range(1, len(truth) + 1)],
            "categories": [{"id": 1, "name": "crack"}],
            "annotations": _annotations(truth),
        }
        there.createIndex()
        judge = COCOeval(there, there.loadRes(_annotations(found)), "bbox")
        judge.params.iouThrs = np.array(OVERLAPS)
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.params.maxDets = [100]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, 0, 0, 0]  # (overlaps, recalls)
    return {f"{overlap:g}": round(float(row.mean()), 6) for overlap, row in zip(OVERLAPS, precision, strict=True)}


def _annotations(images: Sequence[Sequence[Box]]) -> list[dict[str, Any]]:
    pairs = [(i, box) for i, boxes in enumerate(images, 1) for box in boxes]
    return [
        {
            "id": number,
            "image_id": image,
            "category_id": 1,
            "bbox": [float(side) for side in box[:4]],
            "area": float(box[2] * box[3]),
            "iscrowd": 0,
            "score": float(box[4]),
        }
        for number, (image, box) in enumerate(pairs, 1)
    ]


def every_threshold(
    truth: Sequence[Sequence[Box]], maps: Sequence[NDArray[np.float32]], size: tuple[int, int]
) -> dict[str, dict[str, float]]:
    """AP by the threshold at which maps (H, W) are made boxes, then by overlap."""
    cut = {threshold: [map_boxes(one, threshold) for one in maps] for threshold in THRESHOLDS}
    return {f"{threshold:g}": average_precision(truth, boxes, size) for threshold, boxes in cut.items()}


def best_threshold(found: dict[str, dict[str, float]]) -> str:
    """The threshold with the highest mean AP over every overlap but 1.0; the lowest of equals."""
    return max(found, key=lambda threshold: sum(found[threshold][f"{overlap:g}"] for overlap in OVERLAPS[:-1]))
