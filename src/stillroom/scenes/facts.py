"""What questions may know of a made room: who is seen well, where things are, how far apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from stillroom.geometry.poses import transform, view0_from_world
from stillroom.records import Scene, SceneObject, View

#: A question names only objects that this many views show with this share of their pixels.
MIN_VIEWS = 2
MIN_SHARE = 0.003
#: Things thinner than this and wider than that (metres) are flat: a rug, a picture.
FLAT_M = (0.05, 0.30)
#: Surfaces this close touch (metres).
TOUCH_M = 0.002
#: A gap counts as seen where so many pixels lie between the two masks.
GAP_PIXELS = 3


@dataclass(frozen=True, kw_only=True)
class RoomFacts:
    """Exact geometry of one room; indices run over ``scene.objects``.

    ``distance`` is between surfaces, in metres, 0 where two objects touch.
    """

    scene: Scene
    distance: Float[np.ndarray, "n n"]

    @property
    def things(self) -> tuple[SceneObject, ...]:
        """The objects, in the order of all indices here."""
        return self.scene.objects

    @cached_property
    def pixel_share(self) -> Float[np.ndarray, "views n"]:
        """Share of each view's pixels that show each object."""
        return pixel_shares(self.scene.views, self.things)

    @cached_property
    def shown(self) -> Int[np.ndarray, "m"]:
        """Objects that enough views show well, in their order."""
        return np.flatnonzero((self.pixel_share >= MIN_SHARE).sum(axis=0) >= MIN_VIEWS)

    @cached_property
    def bulky(self) -> Int[np.ndarray, "m"]:
        """Of ``shown``, what is not flat: a rug's volume and middle say little to a person."""
        thin, wide = FLAT_M
        edges = [self.things[i].box.size for i in self.shown]
        keep = [not (edge.min() < thin and edge.max() > wide) for edge in edges]
        return self.shown[np.array(keep, dtype=bool)]

    @cached_property
    def center(self) -> Float[np.ndarray, "n 3"]:
        """Box centres in ``view0``, metres."""
        first = self.scene.views[0].c2w
        assert first is not None, "a made room has posed views"
        centers = np.array([thing.box.center for thing in self.things]).reshape(-1, 3)
        return transform(view0_from_world(first, self.scene.floor_z), centers)

    @cached_property
    def volume(self) -> Float[np.ndarray, "n"]:
        """Box volumes in cubic metres."""
        return np.array([np.prod(thing.box.size) for thing in self.things])

    @cached_property
    def bearing_deg(self) -> Float[np.ndarray, "n"]:
        """Direction of each centre from below the first camera; 0 is ahead, right is positive."""
        return np.degrees(np.arctan2(self.center[:, 0], self.center[:, 1]))

    @cached_property
    def touching(self) -> Bool[np.ndarray, "n n"]:
        """Who touches whom; nobody touches itself."""
        return (self.distance <= TOUCH_M) & ~np.eye(len(self.things), dtype=bool)

    @cached_property
    def together(self) -> Bool[np.ndarray, "n n"]:
        """Pairs that some view shows well at once."""
        well = (self.pixel_share >= MIN_SHARE).astype(np.float64)
        return well.T @ well > 0

    @cached_property
    def gap_seen(self) -> Bool[np.ndarray, "n n"]:
        """Pairs with at least ``GAP_PIXELS`` pixels between them in a view that shows both well."""
        seen = np.zeros((len(self.things), len(self.things)), dtype=bool)
        for view, share in zip(self.scene.views, self.pixel_share):
            here = np.flatnonzero(share >= MIN_SHARE)
            if len(here) > 1:
                seen[np.ix_(here, here)] |= _apart(view, [self.things[i] for i in here])
        return seen & ~np.eye(len(self.things), dtype=bool)


def pixel_shares(
    views: tuple[View, ...], things: tuple[SceneObject, ...]
) -> Float[np.ndarray, "views n"]:
    """Share of each view's pixels that carry each object's id."""
    ids = np.array([thing.object_id for thing in things], dtype=np.int64)
    shares = np.zeros((len(views), len(things)))
    for row, view in zip(shares, views):
        if view.instances is not None and len(ids):
            count = np.bincount(view.instances.ravel(), minlength=int(ids.max()) + 1)
            row[:] = count[ids] / view.instances.size
    return shares


def _apart(view: View, things: list[SceneObject]) -> Bool[np.ndarray, "n n"]:
    """Pairs of masks with at least ``GAP_PIXELS`` pixels between them in every direction."""
    assert view.instances is not None
    masks = np.stack([view.instances == thing.object_id for thing in things])
    grown = _grow(_grow(masks, axis=1), axis=2)
    # float32 counts of shared pixels: zero means that the grown mask never reaches the other.
    flat = masks.reshape(len(things), -1).astype(np.float32)
    return grown.reshape(len(things), -1).astype(np.float32) @ flat.T == 0


def _grow(masks: Bool[np.ndarray, "n h w"], *, axis: int) -> Bool[np.ndarray, "n h w"]:
    """Masks grown by ``GAP_PIXELS`` along one axis; both axes in turn make a square."""
    grown = masks.copy()
    for step in range(1, GAP_PIXELS + 1):
        lead, tail = [slice(None)] * 3, [slice(None)] * 3
        lead[axis], tail[axis] = slice(step, None), slice(None, -step)
        grown[tuple(lead)] |= masks[tuple(tail)]
        grown[tuple(tail)] |= masks[tuple(lead)]
    return grown
