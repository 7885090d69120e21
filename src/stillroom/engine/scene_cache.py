"""Open scenes kept for the next question, within a budget of memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol, runtime_checkable

from stillroom.records import Answerer, BadInputError, Scene, Session


@runtime_checkable
class SizedSession(Session, Protocol):
    """A session that tells what it holds."""

    @property
    def nbytes(self) -> int:
        """Memory of what has been read of the scene."""
        ...


class SceneCache:
    """An answerer that opens a scene once and keeps it until others need its place.

    Once the open scenes take more than ``budget_bytes`` those asked for longest ago are closed; the
    last one always stays. Whoever still holds a session of a closed scene can go on asking it.
    """

    def __init__(self, answerer: Answerer, *, budget_bytes: int) -> None:
        if budget_bytes < 1:
            raise BadInputError(f"budget_bytes must be at least 1, got {budget_bytes}")
        self.answerer, self.budget_bytes = answerer, budget_bytes
        #: How many scenes were opened, found open, and closed for want of room.
        self.opened = self.found = self.evicted = 0
        self._sessions: OrderedDict[str, SizedSession] = OrderedDict()

    def open(self, scene: Scene) -> Session:
        """The scene's session, opened now or before; scenes are told apart by ``scene_id``."""
        held = self._sessions.get(scene.scene_id)
        if held is None:
            # Room is made first, by what the largest open scene takes: the peak stays within it.
            self._close_down_to(self.budget_bytes - self._largest)
            session = self.answerer.open(scene)
            if not isinstance(session, SizedSession):
                return session
            self.opened += 1
            held = self._sessions[scene.scene_id] = session
        else:
            self.found += 1
        self._sessions.move_to_end(scene.scene_id)
        self._close_down_to(self.budget_bytes, keep=1)
        return held

    @property
    def nbytes(self) -> int:
        """Memory of the open scenes."""
        return sum(session.nbytes for session in self._sessions.values())

    def __contains__(self, scene_id: str) -> bool:
        return scene_id in self._sessions

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def _largest(self) -> int:
        return max((session.nbytes for session in self._sessions.values()), default=0)

    def _close_down_to(self, limit: int, *, keep: int = 0) -> None:
        while len(self._sessions) > keep and self.nbytes > limit:
            self._sessions.popitem(last=False)
            self.evicted += 1
