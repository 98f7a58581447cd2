# SPDX-License-Identifier: Apache-2.0
"""Grow vessels and airways as trees that fill the lobes, and paint them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.phantoms.chest_ct.anatomy import AIR, Anatomy, Space, coarse_lobes
from volseg.phantoms.geometry import Floats, Grid


@dataclass
class Tree:
    """Nodes (N, 3) in mm, index of each node's parent (the root is its own), and radii in mm."""

    nodes: NDArray[np.float64]
    parent: NDArray[np.int64]
    radius: NDArray[np.float64]


def grow_tree(rng: np.random.Generator, root: NDArray[np.float64], targets: NDArray[np.float64], tip: float) -> Tree:
    """Connect each target where both detour and path to the root are short; radii follow Murray's law."""
    step = 6.0
    nodes = np.empty((1 + 40 * len(targets), 3))
    parent = np.zeros(len(nodes), dtype=np.int64)
    path, cube = np.zeros(len(nodes)), np.zeros(len(nodes))
    nodes[0], n = root, 1
    for target in targets:
        distance = np.linalg.norm(nodes[:n] - target, axis=1)
        best = int(np.argmin(distance + 0.4 * path[:n]))
        count = int(np.clip(np.ceil(distance[best] / step), 1, 39))
        ramp = np.linspace(0, 1, count + 1)[1:, None]
        bow = rng.normal(0, 0.06 * distance[best], 3) * np.sin(np.pi * ramp)
        new = slice(n, n + count)
        nodes[new] = nodes[best] + ramp * (target - nodes[best]) + bow
        parent[new] = [best, *range(n, n + count - 1)]
        path[new] = path[best] + ramp[:, 0] * distance[best]
        n += count
        cube[n - 1] += tip**3
    for i in range(n - 1, 0, -1):
        cube[parent[i]] += cube[i]
    return Tree(nodes[:n], parent[:n], np.cbrt(cube[:n]))


def tree_samples(tree: Tree, step: float, low: float = 0.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points about ``step`` mm apart on all branches thicker than ``low`` mm, and their radii."""
    child = np.nonzero((tree.radius > low) & (np.arange(len(tree.parent)) != tree.parent))[0]
    start, end = tree.nodes[tree.parent[child]], tree.nodes[child]
    pace = np.maximum(step, tree.radius[child] / 3)
    count = np.maximum(1, np.ceil(np.linalg.norm(end - start, axis=1) / pace)).astype(int)
    which = np.repeat(np.arange(len(child)), count)
    within = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    ramp = ((within + 1) / count[which])[:, None]
    return start[which] + ramp * (end - start)[which], tree.radius[child][which]


def stamp_tree(
    coverage: NDArray[np.uint8], grid: Grid, points: NDArray[np.float64], radius: NDArray[np.float64]
) -> None:
    """Raise ``coverage`` (0 to 255) around points (N, 3) to the fraction of each voxel filled by a tube."""
    spacing, size = grid.spacing, float(np.prod(grid.spacing) ** (1 / 3))
    wide, edge = np.maximum(radius, 0.5 * size), 0.8 * size
    # the cross-section, including its edge, keeps the area of the tube
    full = np.minimum(1, radius**2 / (wide**2 + edge**2 / 12))
    index, shape = grid.index(points), np.array(coverage.shape)
    flat = coverage.reshape(-1)
    bucket = np.ceil(np.log2(wide / (0.5 * size)) * 2).astype(int)
    for b in np.unique(bucket):
        chosen = np.nonzero(bucket == b)[0]
        reach = wide[chosen].max() + 0.5 * size
        half = np.ceil(reach / spacing).astype(int)
        offset = np.stack(np.meshgrid(*[np.arange(-m, m + 1) for m in half], indexing="ij"), -1).reshape(-1, 3)
        for part in np.array_split(chosen, 1 + len(chosen) * len(offset) // 2_000_000):
            base = np.rint(index[part]).astype(int)
            voxel = base[:, None] + offset
            delta = ((voxel - index[part, None]) * spacing).astype(np.float32)
            r = wide[part].astype(np.float32)[:, None]
            # a voxel averages over more than the tube along a coarse axis, so widen the tube there
            weight = [r * r / (r * r + np.float32(s * s / 12)) for s in spacing]
            away = np.sqrt(sum(delta[..., i] ** 2 * weight[i] for i in range(3)))
            alpha = full[part].astype(np.float32)[:, None] * np.clip(0.5 + (r - away) / np.float32(edge), 0, 1)
            good = (alpha > 0.01) & (voxel >= 0).all(-1) & (voxel < shape).all(-1)
            where = np.ravel_multi_index(tuple(voxel[good].T), coverage.shape)
            np.maximum.at(flat, where, (alpha[good] * 255).astype(np.uint8))


def _roots(a: Anatomy) -> dict[int, NDArray[np.float64]]:
    """Return the points at which vessels and bronchus enter each lobe."""
    at = {
        1: (-0.27, 0.05, 0.55),
        2: (-0.25, -0.15, 0.46),
        3: (0.27, 0.02, 0.56),
        4: (0.3, 0.2, 0.46),
        5: (0.27, -0.15, 0.44),
    }
    return {k: a.size * v for k, v in at.items()}


def _lobe_trees(a: Anatomy, rng: np.random.Generator) -> list[tuple[Tree, Tree, Tree]]:
    """Grow arteries, veins and twigs that fill each lobe but avoid its fissures, like real ones."""
    grid, label, lung = coarse_lobes(a, 5.0)
    x, y, z = (np.broadcast_to(q, grid.shape) for q in grid.coordinates(0, grid.shape[2]))
    space = Space(a, *grid.coordinates(0, grid.shape[2]))
    free = lung < -3
    for _, value, where in space.fissures():
        free &= ~(where & (np.abs(value) < 5))
    density, out = rng.uniform(0.06, 0.11), []  # targets per cell of 5 mm
    for lobe, root in _roots(a).items():
        cells = np.nonzero((label == lobe) & free)
        place = np.stack([q[cells] for q in (x, y, z)], axis=1).astype(np.float64)
        pair = []
        for share in (1.0, 0.7):
            count = max(20, int(density * share * len(place)))
            pick = place[rng.choice(len(place), min(count, len(place)), replace=False)]
            pick = pick + rng.uniform(-2.5, 2.5, pick.shape)
            # near targets first, so that trunks form before twigs
            order = np.argsort(np.linalg.norm(pick - root, axis=1) * rng.uniform(0.4, 1.6, len(pick)))
            pair.append(grow_tree(rng, root + rng.normal(0, 4, 3), pick[order], rng.uniform(0.42, 0.6)))
        out.append((pair[0], pair[1], grow_twigs(rng, place)))
    return out


def grow_twigs(rng: np.random.Generator, place: NDArray[np.float64]) -> Tree:
    """Draw loose ends of vessels, too thin for their own tree, at about a third of the points (N, 3)."""
    count = len(place) // 3
    start = place[rng.integers(len(place), size=count)] + rng.uniform(-2.5, 2.5, (count, 3))
    way = rng.normal(size=(count, 3))
    end = start + way / np.linalg.norm(way, axis=1, keepdims=True) * rng.uniform(3, 9, (count, 1))
    own = np.arange(count)
    return Tree(np.concatenate([start, end]), np.concatenate([own, own]), np.tile(rng.uniform(0.2, 0.45, count), 2))


def _windpipe(a: Anatomy) -> list[tuple[NDArray[np.float64], float]]:
    """Return trachea, main and lobar bronchi as lines (2, 3) in mm with the radius of the lumen."""
    radius = 0.06 * a.size[0]
    carina = a.size * (0.02, -0.08, 0.64)
    lines = [(np.stack([a.size * (0.02, -0.02, 1.35), carina]), radius)]
    for side, fork in ((0, a.size * (-0.2, -0.08, 0.53)), (1, a.size * (0.17, -0.06, 0.55))):
        lines.append((np.stack([carina, fork]), 0.72 * radius))
        lines += [(np.stack([fork, p]), 0.5 * radius) for k, p in _roots(a).items() if (k > 2) == bool(side)]
    return lines


def paint_trees(hu: Floats, a: Anatomy, grid: Grid, rng: np.random.Generator) -> None:
    """Paint vessels, then walls and lumina of the airways."""
    step = 0.6 * float(grid.spacing.min())
    vessel, wall, lumen = (np.zeros(grid.shape, np.uint8) for _ in range(3))
    for artery, vein, twigs in _lobe_trees(a, rng):
        for tree in (artery, vein, twigs):
            stamp_tree(vessel, grid, *tree_samples(tree, step))
        points, radius = tree_samples(artery, step, 1.6)
        points = points + (radius * 1.9)[:, None] * np.array([0.3, -0.7, 0.6])
        stamp_tree(wall, grid, points, radius * 1.05)
        stamp_tree(lumen, grid, points, radius * 0.72)
    for line, bore in _windpipe(a):
        tube = Tree(line, np.array([0, 0]), np.full(2, bore))
        points, radii = tree_samples(tube, step)
        stamp_tree(wall, grid, points, radii + 1.5)
        stamp_tree(lumen, grid, points, radii)
    for coverage, value in ((vessel, a.blood), (wall, 0.0), (lumen, AIR + 15)):
        where = np.nonzero(coverage)
        alpha = coverage[where].astype(np.float32) / 255
        hu[where] += alpha * (np.float32(value) - hu[where])
