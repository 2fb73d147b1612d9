"""The artifacts on a gateway: which one is in use, which one was before, and the way back when the new one fails.

`models.json` says it all and is replaced in one rename, so a switch either was or was not. A new model is on trial
until it has worked, in one run of the agent, for some minutes. Before that, as many failures or starts of the agent
as the limits say bring the old one back. What was before the first that a twin sends is the gateway's own, where it
has one; that file is never moved or removed.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from targets.runtime.errors import HighwallError, plain
from twin_client.protocol.records import Stamp
from twin_client.services import folder as disk


class Probation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a new model is watched, and what ends it."""

    seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 600.0  # of one run of the agent, with a success after
    failures: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5  # images that it could not judge
    starts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3  # of the agent, but those after an orderly stop


class _Trial(msgspec.Struct, frozen=True):
    starts: int = 0
    failures: int = 0


class _State(msgspec.Struct, frozen=True):
    current: str = ""  # sha256 of the file; empty: the gateway's own, or none
    previous: str = ""
    trial: _Trial | None = None
    returned: str = ""  # why the model before came back, the last time


class Models:
    """The artifacts in `folder`, each under its digest. Call `start` before the first is loaded.

    `own`: the artifact that gateway.toml names, in use while none of a twin's is; None: it names none.
    """

    def __init__(
        self, folder: Path, now: Callable[[], Stamp], probation: Probation | None = None, own: Path | None = None
    ):
        self.folder, self._own, self._now, self._limits = Path(folder), own, now, probation or Probation()
        self._file = self.folder / "models.json"
        self._state = disk.load_state(self._file, _State) or _State()
        self._since = now().mono

    @property
    def digest(self) -> str:
        """The sha256 of the twin's file in use; empty where it is the gateway's own, or none."""
        return self._state.current

    @property
    def current(self) -> Path | None:
        """The file in use; None where there is none."""
        return self.path(self._state.current) if self._state.current else self._own

    @property
    def on_trial(self) -> bool:
        """Whether the model in use has still to prove itself."""
        return self._state.trial is not None

    @property
    def returned(self) -> str:
        """Why the model before came back by itself, the last time; empty: it never did."""
        return self._state.returned

    def path(self, digest: str) -> Path:
        """Where the artifact with this digest lies, or would."""
        return self.folder / f"{digest}.highwall"

    def orphan(self, digest: str) -> Path | None:
        """An artifact that a switch had renamed already when the power went, and that nothing points to."""
        path = self.path(digest)
        pointed_to = digest in (self._state.current, self._state.previous) or self._is_own(path)
        return path if path.exists() and not pointed_to else None

    def start(self) -> Path | None:
        """Count a start of the agent against a trial, and give the model to load."""
        self._since = self._now().mono
        trial = self._state.trial
        if trial is not None:
            if not self.path(self._state.current).exists():
                self._return("its file is missing")
            elif trial.starts >= self._limits.starts:
                self._return(f"the agent ended {trial.starts} times with it")
            elif not self._keep(_with(self._state, starts=trial.starts + 1)):
                self._return("its starts cannot be counted, because the disk takes no more")
        return self.current

    def stop(self) -> None:
        """The agent ends in an orderly way, which says nothing against the model."""
        trial = self._state.trial
        if trial is not None and trial.starts:
            self._keep(_with(self._state, starts=trial.starts - 1))

    def failed(self, why: str, at_all: bool = False) -> bool:
        """The model in use failed on an image, or `at_all`; True where that brought the one before back."""
        trial = self._state.trial
        if trial is None:
            return False
        failures = trial.failures + 1
        if at_all or failures >= self._limits.failures:
            self.give_way(why)
            return True
        if not self._keep(_with(self._state, failures=failures)):
            self._state = _with(self._state, failures=failures)
        return False

    def give_way(self, why: str) -> None:
        """Bring back what was before the model in use, on trial or not: none, where nothing was."""
        self._return(plain(why))

    def worked(self) -> bool:
        """The model in use judged an image; True where that ended its trial."""
        if self._state.trial is None or (self._now().mono - self._since) / 1e6 < self._limits.seconds:
            return False
        return self._keep(msgspec.structs.replace(self._state, trial=None))

    def switch(self, proven: Path, digest: str, way_back: bool = True) -> Path:
        """Put the file `proven`, in this folder and with this digest, in use; the one before stays.

        It is on trial where there is one before, unless that is known to run no more (`way_back`). Raises
        HighwallError where the disk refuses; then nothing has changed.
        """
        target, state = self.path(digest), self._state
        try:
            if proven != target:
                proven.replace(target)
            disk.sync_folder(self.folder)
        except OSError as error:
            raise HighwallError(f"cannot rename {proven}: {error.strerror or error}") from error
        trial = _Trial() if way_back and self.current is not None else None  # else there is nothing to return to
        after = _State(digest, state.current, trial, state.returned)
        disk.save_state(self._file, after)
        self._state, self._since = after, self._now().mono
        for path in self.folder.glob("*.highwall"):
            if path.stem not in (digest, state.current) and not self._is_own(path):
                disk.remove(path)
        return target

    def _is_own(self, path: Path) -> bool:
        """Whether gateway.toml names a file in this very folder, which is not ours to move or remove."""
        return self._own is not None and path.resolve() == self._own.resolve()

    def _return(self, why: str) -> None:
        """In memory in any case: a full disk must not keep a bad model in use."""
        state = self._state
        before = state.previous[:16] or ("none" if self._own is None else "the gateway's own")
        text = f"{state.current[:16]} gave way to {before}: {why}"
        after = _State(state.previous, "", None, text)
        self._keep(after)
        self._state = after

    def _keep(self, state: _State) -> bool:
        try:
            disk.save_state(self._file, state)
        except HighwallError:
            return False
        self._state = state
        return True


def day_of(at: Stamp) -> date:
    """The day by which trust is judged: the gateway's own reckoning, since the system's clock may wake in any year."""
    return datetime.fromtimestamp(at.wall / 1e6, UTC).date()


def _with(state: _State, **changes: int) -> _State:
    trial = msgspec.structs.replace(state.trial or _Trial(), **changes)
    return msgspec.structs.replace(state, trial=trial)
