"""Training variations of a batch: what a camera, a season or a dusty day could have changed.

All act on float images in [0, 1] of shape (N, C, H, W), and on masks (N, 1, H, W) alike where pixels move.
Draws come from torch's generator, which the trainer seeds for each epoch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.data.blur import convolve, disc, line


def turn(images: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Each batch in one of the eight symmetries of the square, halves of it mirrored."""
    quarter = int(torch.randint(4, ()))
    mirrored = torch.rand(images.shape[0]) < 0.5

    def apply(x: Tensor) -> Tensor:
        x = torch.rot90(x, quarter, (2, 3))
        return torch.where(mirrored.view(-1, 1, 1, 1).to(x.device), x.flip(3), x)

    return apply(images), None if masks is None else apply(masks)


def zoom(images: Tensor, masks: Tensor | None, low: float = 0.75, high: float = 1.3) -> tuple[Tensor, Tensor | None]:
    """Each image rotated by any angle, scaled by `low` to `high` and shifted up to a sixteenth; edges mirrored."""
    n = images.shape[0]
    scale = torch.exp(torch.empty(n).uniform_(math.log(low), math.log(high)))
    angle = torch.rand(n) * 2 * math.pi
    shift = (torch.rand(n, 2) - 0.5) / 4
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    theta = torch.stack((torch.stack((cos, -sin, shift[:, 0]), 1), torch.stack((sin, cos, shift[:, 1]), 1)), 1)
    grid = F.affine_grid(theta.to(images.device), [n, 1, *images.shape[2:]], align_corners=False)
    images = F.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)
    if masks is not None:
        masks = F.grid_sample(masks, grid, "bilinear", "reflection", align_corners=False)
        masks = (masks >= 0.5).to(images.dtype)
    return images, masks


def weather(images: Tensor, strength: float = 1.0, ceiling: float = 1.0) -> Tensor:
    """Light, haze and sensor: gain, contrast and offset per image, a little per band, gamma, blur and noise.

    `ceiling` is where the sensor saturates, in the images' units.
    """
    n, bands = images.shape[:2]

    def draw(spread: float, *shape: int) -> Tensor:
        return (torch.rand(n, *shape, 1, 1).to(images.device) * 2 - 1) * spread * strength

    mean = images.mean((2, 3), keepdim=True)
    images = (images - mean) * (1 + draw(0.3, 1)) + mean * (1 + draw(0.25, 1) + draw(0.12, bands)) + draw(0.04, 1)
    images = images.clamp(1e-4, ceiling) ** torch.exp(draw(0.25, 1))
    if float(torch.rand(())) < 0.25:
        soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        images = torch.lerp(images, soft, torch.rand(n, 1, 1, 1).to(images.device))
    if float(torch.rand(())) < 0.5:
        images = images + torch.randn(images.shape).to(images.device) * 0.02 * strength * torch.rand(())
    return images.clamp(0, ceiling)


def haze(images: Tensor, chance: float, thickest: float = 1.5) -> Tensor:
    """Some of the images through bright air, of an optical thickness up to `thickest` that differs along the rows."""
    n, _, height, _ = images.shape
    thickness = torch.rand(n, 1, 1, 1) * thickest * _hits(n, chance)
    slope = torch.rand(n, 1, 1, 1) * 1.2 - 0.6
    through = torch.exp(-thickness * (1 + slope * torch.linspace(1, -1, height).view(1, 1, -1, 1))).to(images.device)
    brightest = torch.quantile(images.mean(1).flatten(1), 0.99, dim=1).view(-1, 1, 1, 1)
    return images * through + 0.95 * brightest * (1 - through)


def blur(images: Tensor, chance: float, side: int) -> Tensor:
    """Some of the images out of focus or in motion, by shares of `side`, the pixels of a whole photograph's side."""
    images = images.clone()
    for index in torch.nonzero(_hits(images.shape[0], chance).flatten()).flatten():
        amount = float(torch.rand(())) * side
        if float(torch.rand(())) < 0.5:
            kernel = disc(0.5 + 0.011 * amount)
        else:
            kernel = line(1 + 0.03 * amount, float(torch.rand(())) * math.pi)
        images[index] = convolve(images[index : index + 1], kernel)[0]
    return images


def noise(images: Tensor, chance: float, most: float = 0.12, ceiling: float = 1.0) -> Tensor:
    """Some of the images with noise that grows with the root of the light, its deviation about `most` at 1."""
    deviation = torch.rand(images.shape[0], 1, 1, 1) * most * _hits(images.shape[0], chance)
    drawn = torch.randn(images.shape) * deviation
    return (images + drawn.to(images.device) * (images.clamp(min=0) + 0.1).sqrt()).clamp(0, ceiling)


def seam(images: Tensor, masks: Tensor, chance: float = 0.5) -> tuple[Tensor, Tensor]:
    """A straight edge across some of the images: a wall's end, a joint, a ledge with the water behind it.

    Beyond a random line lies, two times in three, another image of the batch with its mask; along it runs a
    dark or bright seam. Straight seams are what a network takes for cracks on walls that it has not seen.
    """
    n, _, height, width = images.shape
    distance = _distance(n, height, width)
    hit = _hits(n, chance)
    swapped = (hit & _hits(n, 2 / 3) & (distance > 0)).to(images.device)
    order = torch.randperm(n)
    images = torch.where(swapped, images[order], images)
    masks = torch.where(swapped, masks[order], masks)
    reach = torch.exp(torch.empty(n, 1, 1, 1).uniform_(math.log(0.7), math.log(9)))
    depth = torch.empty(n, 1, 1, 1).uniform_(-0.75, 0.35)
    shade = torch.where(hit, 1 + depth * torch.exp(-((distance / reach) ** 2)), 1.0)
    covered = hit & (distance.abs() < reach) & (depth < -0.3)  # no crack shows in the dark of a seam
    return images * shade.to(images.device), masks.masked_fill(covered.to(masks.device), 0.0)


def shadow(images: Tensor, chance: float = 0.3) -> Tensor:
    """Half of some of the images in shade, behind a line that is sharp or soft."""
    n, _, height, width = images.shape
    soft = torch.exp(torch.empty(n, 1, 1, 1).uniform_(math.log(0.5), math.log(30)))
    loss = torch.empty(n, 1, 1, 1).uniform_(0, 0.55) * _hits(n, chance)
    return images * (1 - loss * torch.sigmoid(_distance(n, height, width) / soft)).to(images.device)


def _hits(n: int, chance: float) -> Tensor:
    return (torch.rand(n) < chance).view(-1, 1, 1, 1)


def _distance(n: int, height: int, width: int) -> Tensor:
    """(n, 1, height, width): each pixel's distance from a random line, negative on its one side.

    Half of the lines are near level or upright, as walls are.
    """
    upright = torch.randint(4, (n,)) * (math.pi / 2) + torch.randn(n) * 0.08
    angle = torch.where(torch.rand(n) < 0.5, upright, torch.rand(n) * 2 * math.pi).view(-1, 1, 1, 1)
    rows = torch.arange(height).view(1, 1, -1, 1) - torch.rand(n, 1, 1, 1) * height
    columns = torch.arange(width).view(1, 1, 1, -1) - torch.rand(n, 1, 1, 1) * width
    return columns * torch.cos(angle) + rows * torch.sin(angle)


def dropout_patches(images: Tensor, chance: float = 0.3) -> Tensor:
    """Patches without data, black as in a cloud-masked scene, so that no label can be read off them."""
    n, _, height, width = images.shape
    hit = torch.rand(n) < chance
    centre = torch.rand(n, 2)
    radius = torch.rand(n, 2) * 0.15 + 0.03
    rows = ((torch.arange(height) + 0.5) / height).view(1, -1, 1)
    columns = ((torch.arange(width) + 0.5) / width).view(1, 1, -1)
    offset_rows = (rows - centre[:, :1, None]) / radius[:, :1, None]
    offset_columns = (columns - centre[:, 1:, None]) / radius[:, 1:, None]
    gone = (offset_rows**2 + offset_columns**2 < 1) & hit.view(-1, 1, 1)
    return images.masked_fill(gone.unsqueeze(1).to(images.device), 0.0)
