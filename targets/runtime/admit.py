"""The gate an artifact passes before a gateway runs it: digests, signature, version, memory, golden vectors, in order.

The order is the point: no engine sees a byte of the model before the file is whole, its key trusted and its
version no step back. `highwall verify` walks the same way, so what it says is what a gateway will do. Where a limit
of memory is given, the model first runs in a process of its own, so one that takes all there is, or brings its engine
down, takes nobody with it.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from targets.runtime.artifact import Artifact, read
from targets.runtime.engine import Engine, open_session
from targets.runtime.errors import HighwallError
from targets.runtime.footprint import measure
from targets.runtime.golden import GoldenReport, check
from targets.runtime.trust import Standing, Trust, judge, today_utc
from targets.runtime.versions import check_floor, check_upgrade

TRIAL_SECONDS = 300.0  # in a process of its own; a slow board needs seconds


@dataclass(frozen=True, eq=False)
class Admitted:
    """An artifact that may run here, loaded in its engine, with how it was trusted and what its golden vectors gave."""

    artifact: Artifact
    session: Engine
    standing: Standing
    golden: GoldenReport


@dataclass(frozen=True, eq=False)
class Findings:
    """How far an artifact came. What was not reached is None; `refusal` is None where nothing was amiss.

    `standing` is also None where no trust was given to hold the signature against.
    """

    artifact: Artifact | None = None
    standing: Standing | None = None
    session: Engine | None = None
    golden: GoldenReport | None = None
    refusal: str | None = None


def admit(
    path: Path,
    trust: Trust,
    installed: Artifact | None = None,
    *,
    allow_downgrade: bool = False,
    today: date | None = None,
    threads: int = 1,
    version_floor: int = 0,
    most_mib: float | None = None,
) -> Admitted:
    """Check the artifact at `path` on this very machine and load it; raises HighwallError at the first fault.

    `installed` is what it would replace, None on a bare gateway. `today` is the day by UTC unless given. `most_mib`:
    the most memory the model may take beside Python and the engine; None: it is not tried out.
    """
    found = examine(
        path,
        trust,
        installed,
        allow_downgrade=allow_downgrade,
        today=today,
        threads=threads,
        version_floor=version_floor,
        most_mib=most_mib,
    )
    artifact, session, standing, golden = found.artifact, found.session, found.standing, found.golden
    if found.refusal is not None or not (artifact and session and standing and golden):
        raise HighwallError(found.refusal or f"{path}: no trust was given to hold its signature against")
    return Admitted(artifact, session, standing, golden)


def examine(
    path: Path,
    trust: Trust | None,
    installed: Artifact | None = None,
    *,
    allow_downgrade: bool = False,
    today: date | None = None,
    threads: int = 1,
    version_floor: int = 0,
    most_mib: float | None = None,
) -> Findings:
    """What `admit` would find, as a report; without `trust` the signature is not held against anything."""
    try:
        artifact = read(path)
    except HighwallError as error:
        return Findings(refusal=str(error))
    standing = None if trust is None else judge(artifact.signature, trust, today or today_utc())
    if standing is not None and standing.state != "trusted":
        return Findings(artifact, standing, refusal=f"{path}: {standing.reason}")
    try:
        if installed is not None:
            check_upgrade(installed, artifact, allow_downgrade)
        check_floor(artifact, version_floor)
        if most_mib is not None:
            _check_memory(artifact, most_mib)
        session = open_session(artifact.manifest.runtime, artifact.model, threads)
        report = check(artifact, session)
    except HighwallError as error:
        return Findings(artifact, standing, refusal=f"{path}: {error}")
    refusal = None if report.passed else f"{path}: {_difference(report)}"
    return Findings(artifact, standing, session, report, refusal)


def _check_memory(artifact: Artifact, most_mib: float) -> None:
    manifest = artifact.manifest
    peak = measure(manifest.runtime, artifact.model, manifest.input, runs=1, seconds=TRIAL_SECONDS).peak_mib
    if peak is not None and peak > most_mib:
        raise HighwallError(
            f"it takes {peak:g} MiB of memory to run here, at most {most_mib:g} are allowed; build it smaller, or "
            "raise that limit"
        )


def _difference(report: GoldenReport) -> str:
    return (
        f"its answers differ from its golden vectors by {report.max_difference:.3g}, tolerance {report.tolerance:g}; "
        "it does not run here as it did where it was built, build it for this board and this engine's version"
    )
