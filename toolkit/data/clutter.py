"""Things that lie on a photographed surface and are no cracks: grass, litter and the dark beneath them.

A network that has seen few kinds of ground takes the dark between blades of grass, or under a ledge, for a crack.
Acts on float images in [0, 1] of shape (N, C, H, W) and masks (N, 1, H, W), like the rest of the augmentation.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

GREEN = (0.55, 0.65, 0.35)  # of red, green and blue in grass that is neither fresh nor dead


@dataclass(frozen=True)
class Layer:
    """What is drawn over an image, its cover and its tone, and the shade under it: (H, W) in [0, 1]."""

    cover: NDArray[np.float32]
    tone: NDArray[np.float32]
    shade: NDArray[np.float32]


def clutter(images: Tensor, masks: Tensor, chance: float = 0.4) -> tuple[Tensor, Tensor]:
    """Grass or litter on some of the images; no crack shows where it lies or where its shade is deep."""
    images, masks = images.clone(), masks.clone()
    size = (images.shape[2], images.shape[3])
    for index in torch.nonzero(torch.rand(images.shape[0]) < chance).flatten().tolist():
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        grassy = rng.random() < 0.6
        layer = grass(size, rng) if grassy else litter(size, rng)
        colour = _colour(images.shape[1], grassy, rng)
        cover, tone, shade = (
            torch.from_numpy(each).to(images.device) for each in (layer.cover, layer.tone, layer.shade)
        )
        body = colour.to(images.device).view(-1, 1, 1) * tone
        images[index] = torch.lerp(images[index] * (1 - shade), body, cover)
        masks[index].masked_fill_(((cover > 0.4) | (shade > 0.45)).unsqueeze(0), 0.0)
    return images, masks


def grass(size: tuple[int, int], rng: np.random.Generator) -> Layer:
    """Curved blades that grow from one or two patches, each of its own brightness, over dark irregular ground."""
    height, width = size
    cover, tone, shade = (Image.new("L", (width, height)) for _ in range(3))
    blades, light, dark = (ImageDraw.Draw(each) for each in (cover, tone, shade))
    scale = math.sqrt(height * width) / 224
    for _ in range(int(rng.integers(1, 3))):
        centre = rng.uniform(-0.05, 1.05, 2) * (width, height)
        spread = rng.uniform(10, 45, 2) * scale
        heading = rng.uniform(0, 2 * math.pi)
        for _ in range(int(rng.integers(3, 9))):
            at, radius = centre + rng.normal(size=2) * spread * 0.6, rng.uniform(0.2, 0.8, 2) * spread
            dark.ellipse([*(at - radius), *(at + radius)], fill=255)
        for _ in range(int(rng.integers(15, 70))):
            start = centre + rng.normal(size=2) * spread
            angle = heading + rng.normal() * 0.8
            length, bend = rng.uniform(15, 70) * scale, rng.normal() * 0.4
            steps = np.linspace(0, 1, 6)[:, None]
            turned = angle + bend * steps
            points = start + length * steps * np.hstack((np.cos(turned), np.sin(turned)))
            path, thick = [tuple(point) for point in points], int(rng.integers(1, max(2, round(6 * scale)) + 1))
            blades.line(path, fill=255, width=thick, joint="curve")
            light.line(path, fill=int(rng.integers(60, 256)), width=thick + 2, joint="curve")
    return _layer(cover, tone, shade, rng.uniform(1, 6) * scale, rng.uniform(0.3, 0.85))


def litter(size: tuple[int, int], rng: np.random.Generator) -> Layer:
    """Some angular flat things of any size, each with its shade on one side."""
    height, width = size
    cover, tone, shade = (Image.new("L", (width, height)) for _ in range(3))
    bodies, light, dark = (ImageDraw.Draw(each) for each in (cover, tone, shade))
    sun = rng.normal(size=2) * 4
    for _ in range(int(rng.integers(1, 7))):
        centre = rng.uniform(0, 1, 2) * (width, height)
        angles = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(4, 8))))
        radii = np.exp(rng.uniform(math.log(3), math.log(45))) * rng.uniform(0.6, 1.0, len(angles))
        points = centre + radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)
        bodies.polygon([tuple(point) for point in points], fill=255)
        light.polygon([tuple(point) for point in points], fill=int(rng.integers(80, 256)))
        dark.polygon([tuple(point + sun) for point in points], fill=255)
    return _layer(cover, tone, shade, rng.uniform(0.5, 4), rng.uniform(0.1, 0.7))


def _layer(cover: Image.Image, tone: Image.Image, shade: Image.Image, blur: float, depth: float) -> Layer:
    """Drawings as shares; edges are soft as a camera's are, and the shade is `blur` pixels softer."""
    soft = [cover.filter(ImageFilter.GaussianBlur(0.6)), tone, shade.filter(ImageFilter.GaussianBlur(blur))]
    arrays = [np.asarray(each, np.float32) / np.float32(255) for each in soft]
    return Layer(arrays[0], arrays[1], arrays[2] * np.float32(depth))


def _colour(bands: int, grassy: bool, rng: np.random.Generator) -> Tensor:
    """(bands,) in [0, 1]: grass in a photograph is mostly green; all else may have any colour."""
    if grassy and bands == 3 and rng.random() < 0.7:
        values = np.array(GREEN) * rng.uniform(0.5, 1.4) + rng.normal(size=3) * 0.06
    else:
        values = rng.uniform(0.1, 1) + rng.normal(size=bands) * rng.choice([0.03, 0.25])
    return torch.from_numpy(values.clip(0.02, 1).astype(np.float32))
