"""Configuration: the desired state comes into force whole, and for good only once the twin was reached with it.

A desired state that is newer and without a fault is put on trial: it is applied, and the one before stays on the
disk. When the twin answers under it, it is confirmed. When it does not within a limit, counted over restarts in time
and in starts of the agent, the one before comes back by itself. So no state can lock a gateway out, not even one
that crashes the agent or that the power goes in.

What the gateway's own file holds cannot be changed from above: keys, folders, devices and programs are named there
alone, and a desired state can only choose among the names. A stolen twin can thus blind a gateway, but it can not
read its files, run its programs, or send its data to a host that the CA has not certified.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from targets.runtime.errors import HighwallError, plain
from twin_client.protocol import orders
from twin_client.protocol.orders import Desired, Refusal, Reported
from twin_client.protocol.records import Stamp
from twin_client.protocol.site import Site, faults
from twin_client.services import folder as disk

_MOST_FAULTS: Final = 20  # named in one refusal
_SAVE_EVERY: Final = 10.0  # seconds of a trial that a power cut may give back to it


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a desired state may go without the twin being reached."""

    limit: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 600.0  # seconds, in all
    starts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3  # of the agent


@dataclass(frozen=True)
class Local:
    """What the gateway's own file allows. `hosts` empty: every one that its CA certified."""

    ports: frozenset[str] = frozenset()
    cameras: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    dialects: frozenset[str] = frozenset({"highwall"})


class _Version(msgspec.Struct, frozen=True):
    number: int = 0
    settings: dict[str, Any] = {}


class _OnTrial(msgspec.Struct, frozen=True):
    number: int
    settings: dict[str, Any]
    spent: float = 0.0  # seconds
    starts: int = 0


class _State(msgspec.Struct, frozen=True):
    """All of it in one file, so that there is nothing between two steps."""

    seen: int = 0  # the highest number ever looked at
    digest: str = ""  # of the settings that came with it
    kept: _Version = _Version()  # confirmed
    trial: _OnTrial | None = None
    refused: Refusal | None = None


class Configuration:
    """The state in `folder`. Call `start` once, then `tick` every few seconds and `confirm` when the twin answered.

    `apply` puts a Site in force and raises where it cannot; `check` names the faults that only other rooms see, and
    `spare` gives settings without them, for those that an earlier version of the agent had taken.
    """

    def __init__(
        self,
        folder: Path,
        gateway: str,
        local: Local,
        now: Callable[[], Stamp],
        apply: Callable[[Site], None],
        check: Callable[[Site], list[str]] = lambda site: [],
        trial: Trial | None = None,
        spare: Callable[[dict[str, Any]], dict[str, Any]] = lambda settings: settings,
    ):
        self._file, self._gateway, self._local = Path(folder) / "configuration.json", gateway, local
        self._now, self._apply, self._check, self._limits = now, apply, check, trial or Trial()
        self._spare = spare
        self._state = disk.load_state(self._file, _State) or _State()
        self._since = self._saved = now().mono

    @property
    def number(self) -> int:
        """Of the desired state in force; 0: none."""
        return (self._state.trial or self._state.kept).number

    @property
    def site(self) -> Site:
        """What is in force."""
        return msgspec.convert((self._state.trial or self._state.kept).settings, Site)

    def start(self) -> Site:
        """Count this start against a trial, and give what is to be in force; `apply` is left to the caller."""
        self._since = self._saved = self._now().mono
        state = self._state
        if state.trial is not None:
            begun = msgspec.structs.replace(state.trial, starts=state.trial.starts + 1)
            if begun.starts > self._limits.starts:
                self._give_up(f"the agent started {self._limits.starts} times without reaching the twin with it")
            elif self._faults(begun.settings):
                self._give_up("; ".join(self._faults(begun.settings)))
            elif not self._keep(msgspec.structs.replace(state, trial=begun)):
                self._give_up("its starts cannot be counted, because the disk takes no more")
        kept = self._state.kept
        if self._state.trial is None and (wrong := self._faults(kept.settings)):
            # Confirmed by another version of the agent, or before the gateway's own file was changed.
            refused, left = Refusal(kept.number, "; ".join(wrong)), self._spare(self._allowed(kept.settings))
            kept = _Version() if self._faults(left) else _Version(kept.number, left)
            self._state = msgspec.structs.replace(self._state, kept=kept, refused=refused)
        return self.site

    def desire(self, desired: Desired) -> Reported:
        """Take a desired state, or say in the reported one why not. The same one again changes nothing."""
        state, number = self._state, desired.number
        try:
            digest = hashlib.sha256(msgspec.json.encode(desired.settings, order="sorted")).hexdigest()
        except (TypeError, ValueError, RecursionError) as error:  # MessagePack has values that JSON has no word for
            return self._reported(Refusal(number, f"it holds what is no setting: {error}"))
        if (why := self._unfit(desired, digest)) is not None:
            return self._reported(Refusal(number, why))
        if number == state.seen:
            return self.reported()
        found = self._faults(desired.settings)
        seen = msgspec.structs.replace(state, seen=number, digest=digest)
        if found:
            more = [f"and {len(found) - _MOST_FAULTS} more"] if len(found) > _MOST_FAULTS else []
            refusal = Refusal(number, "; ".join([*found[:_MOST_FAULTS], *more]))
            self._keep(msgspec.structs.replace(seen, refused=refusal))
            return self._reported(refusal)
        trial = _OnTrial(number, desired.settings)
        if not self._keep(msgspec.structs.replace(seen, trial=trial, refused=None)):
            return self._reported(Refusal(number, "the disk takes no more; free some space and send it again"))
        self._since = self._saved = self._now().mono
        try:
            self._apply(self.site)
        except Exception as error:  # whatever it was, the one before must come back
            self._roll_back(f"it could not be applied: {plain(str(error) or type(error).__name__)}")
        return self.reported()

    def _unfit(self, desired: Desired, digest: str) -> str | None:
        """Why a state is not even looked at."""
        if desired.gateway != self._gateway:
            return f"it is for {desired.gateway}, this is {self._gateway}"
        if desired.number < self._state.seen:
            return f"number {self._state.seen} was here already, and numbers only grow"
        if desired.number == self._state.seen and digest != self._state.digest:
            return "another state had this number"
        return None

    def confirm(self, number: int) -> bool:
        """The twin was reached while `number` was in force; True if that ends a trial."""
        trial = self._state.trial
        if trial is None or trial.number != number:
            return False
        kept = _Version(trial.number, trial.settings)
        return self._keep(msgspec.structs.replace(self._state, kept=kept, trial=None))

    def tick(self) -> bool:
        """Count the time of a trial; True if it ran out and the state before was applied again."""
        trial = self._state.trial
        if trial is None:
            return False
        mono = self._now().mono
        spent = trial.spent + (mono - self._since) / 1e6
        if spent >= self._limits.limit:
            self._roll_back(f"the twin was not reached with it within {self._limits.limit:g} s")
            return True
        if (mono - self._saved) / 1e6 >= _SAVE_EVERY:
            self._saved = mono
            if self._keep(msgspec.structs.replace(self._state, trial=msgspec.structs.replace(trial, spent=spent))):
                self._since = mono
        return False

    def reported(self) -> Reported:
        """What is in force, and what was refused last."""
        return self._reported(self._state.refused)

    def _reported(self, refused: Refusal | None) -> Reported:
        settings = msgspec.to_builtins(self.site)
        trial = self._state.trial is not None
        return Reported(orders.VERSION, self._gateway, self.number, settings, trial, self._now(), refused)

    def _faults(self, settings: dict[str, Any]) -> list[str]:
        found = faults(Site, settings)
        if found:
            return found
        site, local = msgspec.convert(settings, Site), self._local
        for what, wanted, allowed in (("ports", site.ports, local.ports), ("cameras", site.cameras, local.cameras)):
            known = ", ".join(sorted(allowed)) or "none"
            found += [
                f"{what}.{name}: this gateway has none of that name (it has {known})"
                for name in wanted
                if name not in allowed
            ]
        found += self._forbidden(site)
        return found or self._check(site)

    def _forbidden(self, site: Site) -> list[str]:
        """Why its destination is not one for this gateway."""
        where, local, found = site.destination, self._local, []
        if where is not None and local.hosts and where.host not in local.hosts:
            known = ", ".join(sorted(local.hosts))
            found.append(f"destination.host: {where.host} is not among this gateway's ({known})")
        if where is not None and where.dialect not in local.dialects:
            known = ", ".join(sorted(local.dialects))
            found.append(f"destination.dialect: no dialect {where.dialect} (there is {known})")
        return found

    def _allowed(self, settings: dict[str, Any]) -> dict[str, Any]:
        """`settings` without what the gateway's own file no longer allows: who takes away a camera, or names another
        twin, must not take the rules with it."""
        if faults(Site, settings):
            return settings
        site, local = msgspec.convert(settings, Site), self._local
        left = settings | {
            "ports": {name: settings["ports"][name] for name in site.ports if name in local.ports},
            "cameras": {name: settings["cameras"][name] for name in site.cameras if name in local.cameras},
        }
        return left | {"destination": None} if self._forbidden(site) else left

    def _roll_back(self, why: str) -> None:
        self._give_up(why)
        self._apply(self.site)

    def _give_up(self, why: str) -> None:
        """End the trial in memory in any case: a full disk must not keep a bad state in force."""
        trial = self._state.trial
        refused = None if trial is None else Refusal(trial.number, why)
        after = msgspec.structs.replace(self._state, trial=None, refused=refused)
        self._keep(after)
        self._state = after

    def _keep(self, state: _State) -> bool:
        """Write `state` and go on with it; False, and nothing changed, where the disk refuses."""
        try:
            disk.save_state(self._file, state)
        except HighwallError:
            return False
        self._state = state
        return True
