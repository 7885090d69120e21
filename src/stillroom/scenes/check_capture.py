"""Do a capture's poses, intrinsics and depth agree? And if not, which convention was mixed up?

Depth is carried from view to view by the poses. Where that fails, every usual mistake is undone
in turn; the one whose undoing makes the views agree is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from stillroom.geometry.cameras import pixel_centers, rays
from stillroom.geometry.depth import reproject
from stillroom.geometry.poses import OPENGL_TO_OPENCV, invert, is_rigid
from stillroom.records import Scene, View
from stillroom.scenes.importers.floor import surface_patches

#: Overlapping views agree if the median |dz| stays below this [m] ...
AGREE_M = 0.05
#: ... and below this share of the median depth; a wrong unit can make any |dz| small.
AGREE_SHARE = 0.05
#: Where large things hide much of what another view sees the median is theirs, and this share of
#: all points within 5 cm will do. 40 made rooms had 0.68 to 0.98; with every pose off by about 5
#: degrees and 5 cm they had 0.09 to 0.41, with 10 degrees and 10 cm at most 0.25.
MOSTLY_SEEN = 0.45
#: Below this share of the depth nothing better is looked for: sensors are no finer.
GOOD_SHARE = 0.015
#: Views see the same things if this share of one lands in the other, and they look roughly alike:
#: from further round, most of what one sees is hidden from the other.
MIN_OVERLAP = 0.2
MAX_TURN_DEG = 60.0
#: Median depth of a room, in metres.
ROOM_DEPTH = (0.2, 10.0)
#: Undoing a mistake must leave at most this share of the disagreement.
BETTER = 0.6
#: Points carried from each view, and pixels of the view they are looked up in, about.
POINTS, LOOKED_UP = 1200, 80_000
#: Views compared of a long capture: so many stretches of so many views each.
STRETCHES, STRETCH = 4, 4

INVERTED = "poses look inverted (world to camera where camera to world is expected)"
OPENGL = "camera axes look like OpenGL's (y up, z backward where y down, z forward is expected)"
INVERTED_OPENGL = "poses look inverted and their camera axes like OpenGL's (y up, z backward)"
TRANSPOSED = "rotations look transposed (rows and columns swapped, the shift left as it was)"
RAY = "depth looks like the distance along the ray where the distance along z is expected"
RESOLUTION = "intrinsics look made for another image size"
UNKNOWN = "poses, intrinsics and depth do not agree, and no usual mix-up of conventions explains it"
APART = "no two views overlap under these poses, so nothing confirms poses, intrinsics or depth"


@dataclass(frozen=True, kw_only=True)
class CaptureReport:
    """The verdict on a capture: ``faults`` as sentences, ``lines`` to print, and the figures.

    ``median_abs_dz`` is in metres over ``pairs`` overlapping pairs of views, None without any.
    ``ok`` says that nothing speaks against the capture, also where nothing could be compared.
    """

    ok: bool
    faults: tuple[str, ...]
    lines: tuple[str, ...]
    pairs: int = 0
    median_abs_dz: float | None = None
    within_5cm: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Camera:
    """A view's depth and camera, as given or with one mistake undone."""

    depth: Float[np.ndarray, "h w"]
    intrinsics: Float[np.ndarray, "3 3"]
    c2w: Float[np.ndarray, "4 4"]
    # Pixels of the view to one of these, each way.
    stride: int = 1


@dataclass(frozen=True, kw_only=True)
class _Agreement:
    pairs: int
    # Medians of |dz| in metres and as a share of the capture's median depth; infinite if no pair.
    median: float
    share: float
    within_5cm: float
    # Points that land within 3 % of the median depth: what a true correction has most of.
    agreeing: int

    @property
    def good(self) -> bool:
        return self.median < AGREE_M and self.share < AGREE_SHARE


def check_views(scene: Scene) -> CaptureReport:
    """Check a posed RGB-D capture by reprojection; name what the mismatch looks like.

    Scenes without depth, poses or a second view pass with a line that says what could not be
    compared.
    """
    bent = [v.name for v in scene.views if v.c2w is not None and not is_rigid(v.c2w)]
    if bent:
        fault = f"the pose of {bent[0]} is no rotation with a shift ({len(bent)} such views)"
        return CaptureReport(ok=False, faults=(fault,), lines=(fault,))
    cameras = _cameras(scene.views)
    if not cameras:
        line = f"{len(scene.views)} views without posed depth readings: nothing to compare"
        return CaptureReport(ok=True, faults=(), lines=(line,))
    given = _agreement(cameras)
    found = [_mixed_up(cameras, given) if len(cameras) > 1 else None]
    if found == [None]:
        found = [_depth_range(cameras), _tilted_world(scene.views)]
    faults = [fault for fault in found if fault is not None]
    return CaptureReport(
        ok=not faults,
        faults=tuple(faults),
        lines=(_figures(len(scene.views), cameras, given), *_verdict(faults, given)),
        pairs=given.pairs,
        median_abs_dz=given.median if given.pairs else None,
        within_5cm=given.within_5cm if given.pairs else None,
    )


def _cameras(views: Sequence[View]) -> list[_Camera]:
    """The posed views with depth; of a long capture a few stretches of neighbours."""
    whole = [
        _thinned(_Camera(depth=_metres(view), intrinsics=view.intrinsics, c2w=view.c2w), LOOKED_UP)
        for view in views
        if view.depth_valid.any() and view.intrinsics is not None and view.c2w is not None
    ]
    if len(whole) <= STRETCHES * STRETCH:
        return whole
    step = max(1, len(whole) // 40)
    starts = np.linspace(0, len(whole) - 1 - step * (STRETCH - 1), STRETCHES).round().astype(int)
    chosen = sorted({int(start) + step * k for start in starts for k in range(STRETCH)})
    return [whole[index] for index in chosen]


def _metres(view: View) -> Float[np.ndarray, "h w"]:
    assert view.depth is not None
    return np.where(view.depth_valid, view.depth, 0.0).astype(np.float64)


def _median_depth(cameras: Sequence[_Camera]) -> float:
    return float(np.median([np.median(camera.depth[camera.depth > 0]) for camera in cameras]))


def _thinned(camera: _Camera, pixels: int) -> _Camera:
    """Every so-many-th pixel, about ``pixels`` in all, each still seen where its centre was."""
    stride = max(1, round(np.sqrt(camera.depth.size / pixels)))
    k = camera.intrinsics / np.array([stride, stride, 1.0])[:, None]
    k[:2, 2] += 0.5 - 0.5 / stride
    return _Camera(
        depth=camera.depth[::stride, ::stride],
        intrinsics=k,
        c2w=camera.c2w,
        stride=camera.stride * stride,
    )


def _agreement(cameras: Sequence[_Camera]) -> _Agreement:
    """How well the views' depths agree, over all ordered pairs that see the same things."""
    scale = _median_depth(cameras)
    turn = np.cos(np.radians(MAX_TURN_DEG))
    differences = []
    for source, target in _ordered_pairs(cameras):
        if source.c2w[:3, 2] @ target.c2w[:3, 2] < turn:
            continue
        thin = _thinned(source, POINTS)
        found = reproject(
            thin.depth, thin.intrinsics, thin.c2w, target.depth, target.intrinsics, target.c2w
        )
        if found.overlap >= MIN_OVERLAP:
            differences.append(abs(found.dz))
    if not differences:
        return _Agreement(pairs=0, median=np.inf, share=np.inf, within_5cm=0.0, agreeing=0)
    dz = np.concatenate(differences)
    median = float(np.median(dz))
    return _Agreement(
        pairs=len(differences),
        median=median,
        share=median / scale,
        within_5cm=float((dz < 0.05).mean()),
        agreeing=int((dz < 0.03 * scale).sum()),
    )


def _ordered_pairs(cameras: Sequence[_Camera]) -> Iterator[tuple[_Camera, _Camera]]:
    for source in cameras:
        for target in cameras:
            if source is not target:
                yield source, target


# What may have been mixed up. ------------------------------------------------------------------

_Undo = Callable[[_Camera], _Camera]


def _mixed_up(cameras: Sequence[_Camera], given: _Agreement) -> str | None:
    """The mistake that the disagreement looks like; None if the views agree."""
    if given.good and given.share < GOOD_SHARE:
        return None
    # Where the camera mostly turns, some mistakes stay below the threshold: they are tried even
    # then. Units are not: without a baseline every unit agrees, and noise would choose one.
    undoings = _of_the_lens(cameras) + ([] if given.good else _of_poses_and_units(cameras))
    tried = [(name, _agreement([undo(c) for c in cameras])) for name, undo in undoings]
    # max keeps the first of equals: the plainer mistake.
    name, best = max(tried, key=lambda entry: entry[1].agreeing)
    explains = best.pairs >= 2 and best.share < AGREE_SHARE and best.share < BETTER * given.share
    if explains and best.agreeing > given.agreeing:
        return name
    # Where depth and poses share a wrong unit, centimetres mean nothing; see _depth_range.
    odd_unit = _depth_range(cameras) is not None and given.share < AGREE_SHARE
    if given.good or odd_unit or given.within_5cm >= MOSTLY_SEEN:
        return None
    return UNKNOWN if given.pairs else APART


def _of_the_lens(cameras: Sequence[_Camera]) -> list[tuple[str, _Undo]]:
    lens: list[tuple[str, _Undo]] = [(RAY, _undo_ray)]
    if any(_off_centre(camera) for camera in cameras):
        lens.append((_resolution_sentence(cameras[0]), _undo_resolution))
    for factor in (0.5, 0.65, 0.8, 1.25, 1.5, 2.0):
        times, which = (factor, "long") if factor > 1 else (1 / factor, "short")
        sentence = f"focal lengths look about {times:.3g} times too {which} for these pictures"
        lens.append((sentence, _refocused(1 / factor)))
    return lens


def _of_poses_and_units(cameras: Sequence[_Camera]) -> list[tuple[str, _Undo]]:
    undoings: list[tuple[str, _Undo]] = [
        (INVERTED, lambda c: replace(c, c2w=invert(c.c2w))),
        (OPENGL, lambda c: replace(c, c2w=c.c2w @ OPENGL_TO_OPENCV)),
        (INVERTED_OPENGL, lambda c: replace(c, c2w=invert(c.c2w) @ OPENGL_TO_OPENCV)),
        (TRANSPOSED, _undo_transposed),
    ]
    depth = _median_depth(cameras)
    for factor in (5.0, 10.0, 100.0, 1000.0):
        for times in (factor, 1.0 / factor):
            undoings.append((_unit_sentence(times, depth), _rescaled(times)))
    return undoings


def _undo_transposed(camera: _Camera) -> _Camera:
    c2w = camera.c2w.copy()
    c2w[:3, :3] = c2w[:3, :3].T
    return replace(camera, c2w=c2w)


def _undo_ray(camera: _Camera) -> _Camera:
    length = np.linalg.norm(rays(pixel_centers(*camera.depth.shape), camera.intrinsics), axis=-1)
    return replace(camera, depth=camera.depth / length)


def _rescaled(times: float) -> _Undo:
    return lambda camera: replace(camera, depth=camera.depth * times)


def _refocused(times: float) -> _Undo:
    scale = np.array([[times, 1.0, 1.0], [1.0, times, 1.0], [1.0, 1.0, 1.0]])
    return lambda camera: replace(camera, intrinsics=camera.intrinsics * scale)


def _off_centre(camera: _Camera) -> bool:
    """Whether the principal point lies far from the picture's centre."""
    height, width = camera.depth.shape
    centre = 2 * camera.intrinsics[:2, 2] / (width, height)
    return bool((abs(centre - 1) > 0.2).any())


def _undo_resolution(camera: _Camera) -> _Camera:
    """Intrinsics scaled so that the principal point comes to the picture's centre.

    One factor for both axes where they nearly agree, as a lens is rarely centred exactly.
    """
    height, width = camera.depth.shape
    x, y = np.array([width, height]) / (2 * camera.intrinsics[:2, 2])
    if abs(x / y - 1) < 0.15:
        y = x
    return replace(camera, intrinsics=camera.intrinsics * np.array([x, y, 1.0])[:, None])


def _resolution_sentence(camera: _Camera) -> str:
    height, width = (side * camera.stride for side in camera.depth.shape)
    x, y = 2 * camera.stride * camera.intrinsics[:2, 2]
    return (
        f"{RESOLUTION}: their centre fits about {x:.0f}x{y:.0f} pixels, the pictures have "
        f"{width}x{height}"
    )


def _unit_sentence(times: float, depth: float) -> str:
    """The mistake that multiplying depth by ``times`` undoes; or the same one in the poses."""
    factor, large = (1 / times, True) if times < 1 else (times, False)
    fits = ROOM_DEPTH[0] <= depth * times <= ROOM_DEPTH[1]
    if not fits and factor in (100.0, 1000.0) and ROOM_DEPTH[0] <= depth <= ROOM_DEPTH[1]:
        size = "small" if large else "large"
        return f"the poses' shifts look {factor:.0f} times too {size} (metres are expected)"
    size = "large" if large else "small"
    return f"depth looks {factor:.0f} times too {size}: check its units per metre"


# What reprojection cannot see. -----------------------------------------------------------------


def _depth_range(cameras: Sequence[_Camera]) -> str | None:
    """Depth and poses may share a wrong unit; then only the size of the room tells."""
    depth = _median_depth(cameras)
    if ROOM_DEPTH[0] <= depth <= ROOM_DEPTH[1]:
        return None
    return (
        f"the median depth is {depth:.3g} m, a room's lies between {ROOM_DEPTH[0]} and "
        f"{ROOM_DEPTH[1]:.0f} m: check the unit of depth and poses"
    )


def _tilted_world(views: Sequence[View]) -> str | None:
    """Which way is up: floors and tables face it, and cameras are held with their top towards it.

    Turning the whole world leaves every reprojection as it was, so this is looked at apart.
    """
    posed = [view for view in views if view.c2w is not None]
    normals = np.concatenate([surface_patches(view)[1] for view in posed[:16]])
    if len(normals) < 200:
        return None
    tops = -np.mean([view.c2w[:3, 1] for view in posed if view.c2w is not None], axis=0)
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    facing = (normals @ axes.T > np.cos(np.radians(20))).mean(axis=0)
    votes = facing + axes @ tops
    best = int(votes.argmax())
    # Photos taken straight down at a table hold the camera's top any way round.
    if votes[best] < votes[2] + 0.4 or facing[best] <= facing[2]:
        return None
    name = ("x", "y", "z", "-x", "-y", "-z")[best]
    turn = "; turn it by (x, y, z) -> (x, -z, y)" if name == "y" else ""
    return f"the world looks {name} up where z up is expected{turn}"


# Sentences. ------------------------------------------------------------------------------------


def _figures(views: int, cameras: Sequence[_Camera], given: _Agreement) -> str:
    if not given.pairs:
        return f"{views} views, no overlapping pair to compare"
    compared = "" if len(cameras) == views else f", {len(cameras)} compared"
    return (
        f"{views} views{compared}, {given.pairs} overlapping pairs: median |dz| "
        f"{100 * given.median:.1f} cm, {100 * given.within_5cm:.0f} % within 5 cm"
    )


def _verdict(faults: Sequence[str], given: _Agreement) -> list[str]:
    if faults:
        return list(faults)
    if given.pairs:
        return ["poses, intrinsics and depth scale agree"]
    return ["a single posed view with depth: nothing to compare it with"]
