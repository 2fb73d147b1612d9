"""The verb of this room: gateway, with what a person does at one."""

import argparse
import asyncio
import json
import os
import shlex
import shutil
import sys
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from targets.runtime.errors import HighwallError

if TYPE_CHECKING:
    from twin_client.config import Settings

CONFIG: Final = Path("gateway.toml")
SPEED: Final = (0.001, 1_000_000)  # times as fast
MOST_S: Final = 1_000_000_000  # seconds, as good as without end

EXAMPLE: Final = """\
# A gateway's own file. What is not here has a good default; `highwall gateway selftest` says what does not fit.
gateway = "{gateway}"            # its name: letters, digits and _ . : -
folder = "{folder}"  # where everything is kept that must not be lost

# Where records go. Without it: to the host that enrolled this gateway, port 8883.
# [destination]
# host = "twin.example.org"
# port = 8883
# dialect = "highwall"           # or "thingsboard"

[[serial.ports]]
name = "radio"
url = "/dev/ttyUSB0"             # or socket://host:port, rfc2217://host:port
baud = 115200
format = "frames"                # or "json", "csv" for loggers that speak text

# Tags are paired by the barcode on them: `highwall gateway pair BARCODE`, or here.
# [tags."BARCODE"]
# type = "extensometer"          # "person" and "machine" have their motion judged

# [[cameras]]                    # a command that takes an image
# name = "east"
# command = ["rpicam-still", "-n", "-t", "500", "-o", "{{out}}"]
# period = 60.0                  # seconds

# [[folders]]                    # or a folder that others put images in
# name = "tiles"
# folder = "tiles"

# model = "crack.highwall"       # what judges the images
# trust = "trust.toml"           # whose models may run: a .pub or a trust file
"""

DEMO: Final = """\
# For the simulated mine of `highwall gateway simulate --images pit-images`, and a broker on this machine.
gateway = "{gateway}"
folder = "{folder}"

[destination]
host = "127.0.0.1"
port = 1883

[uplink]
tls = false                      # never over a network

[[serial.ports]]
name = "radio"
url = "./pit-tty"

[[folders]]
name = "east"
folder = "pit-images"

[tags]
ext-1 = {{type = "extensometer"}}
ext-2 = {{type = "extensometer"}}
ext-3 = {{type = "extensometer"}}
ext-4 = {{type = "extensometer"}}
ext-5 = {{type = "extensometer"}}
ext-6 = {{type = "extensometer"}}
person-1 = {{type = "person"}}
person-2 = {{type = "person"}}
person-3 = {{type = "person"}}
truck-1 = {{type = "machine"}}
truck-2 = {{type = "machine"}}
weather = {{}}
ground = {{}}
"""


def gateway_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `highwall gateway`."""
    verbs = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, what: str, config: bool = True) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=what, description=what)
        if config:
            made.add_argument("--config", type=Path, default=CONFIG, metavar="FILE", help="default: gateway.toml")
        return made

    new = action("init", "write a gateway.toml to begin with")
    new.add_argument("name", metavar="GATEWAY", help="what this gateway is called")
    new.add_argument("--folder", default="/var/lib/highwall", metavar="DIR", help="where it keeps its data")
    new.add_argument("--demo", action="store_true", help="for the simulated mine, and a broker on this machine")
    enroll = action("enroll", "have a twin take this gateway in: makes a key here, and asks for its certificate")
    enroll.add_argument("url", metavar="URL", help="the twin's address, https://...")
    enroll.add_argument("code", metavar="CODE", help="the one-time code that the twin has printed")
    enroll.add_argument("--again", action="store_true", help="replace the identity, or the request, that is there")
    enroll.add_argument("--no-wait", action="store_true", help="ask once; the agent goes on asking")
    action("run", "be the agent, until told to stop")
    shown = action("status", "how the gateway fares")
    shown.add_argument("--json", action="store_true", help="print JSON")
    tried = action("selftest", "try every part of the gateway on this machine")
    tried.add_argument("--json", action="store_true", help="print JSON")
    drained = action("drain", "copy the outbox to a stick, for a site without a link")
    drained.add_argument("--to", type=Path, required=True, metavar="DIR", help="a folder on the stick")
    drained.add_argument("--forget", action="store_true", help="then take from the outbox what the stick has for good")
    drained.add_argument("--json", action="store_true", help="print JSON")
    paired = action("pair", "take records of a tag from now on")
    paired.add_argument("tag", metavar="BARCODE")
    paired.add_argument("--type", default="", help="such as extensometer; person and machine have their motion judged")
    paired.add_argument("--note", default="", help="such as where it is")
    unpaired = action("unpair", "take no more records of a tag")
    unpaired.add_argument("tag", metavar="BARCODE")
    played = action("simulate", "a mine without hardware: tags at a pty, images in a folder", config=False)
    played.add_argument("--port", type=Path, default=Path("pit-tty"), metavar="LINK", help="default: pit-tty")
    played.add_argument("--images", type=Path, metavar="DIR", help="where the camera's images go")
    played.add_argument("--seconds", type=float, metavar="S", help="of the mine's time (default: until interrupted)")
    played.add_argument("--speed", type=float, default=1.0, metavar="N", help="times as fast")
    played.add_argument("--seed", type=int, default=0, help="the same seed gives the same mine (default: 0)")
    played.add_argument(
        "--boot",
        type=int,
        metavar="N",
        help="how often the tags have started, for the same bytes again, which a gateway that heard them drops "
        "(default: by the clock)",
    )
    played.add_argument("--failure", type=float, default=6.0, metavar="HOURS", help="when the slope fails (default: 6)")
    played.add_argument("--lost", type=float, default=0.0, metavar="SHARE", help="of the frames")
    played.add_argument(
        "--noise", type=float, default=0.0, metavar="SHARE", help="of the frames with noise before them"
    )
    played.add_argument("--unplug", type=float, default=0.0, metavar="S", help="seconds between two times it is pulled")
    played.add_argument("--truth", type=Path, metavar="FILE", help="what really happened, a line of JSON an event")
    played.add_argument("--capture", type=Path, metavar="FILE", help="what went over the line, for `replay`")
    played.add_argument("--json", action="store_true", help="print the counts as JSON")
    again = action(
        "replay",
        "a capture, or a drained outbox, into a pty at its own pace; a gateway drops what it has heard before, so its "
        "data folder must be another",
        config=False,
    )
    again.add_argument(
        "file", type=Path, metavar="FILE", help="of --capture, a .batch, or a folder that was drained to"
    )
    again.add_argument("--port", type=Path, default=Path("pit-tty"), metavar="LINK", help="default: pit-tty")
    again.add_argument("--speed", type=float, default=1.0, metavar="N", help="times as fast")
    service = action("service", "print the systemd unit that runs the agent")
    service.add_argument("--user", default="highwall", help="whom it runs as (default: highwall)")


def gateway(args: argparse.Namespace) -> int:
    """Do what is asked for at a gateway."""
    actions = {
        "init": _init,
        "enroll": _enroll,
        "run": _run,
        "status": _status,
        "selftest": _selftest,
        "drain": _drain,
        "pair": _pair,
        "unpair": _unpair,
        "simulate": _simulate,
        "replay": _replay,
        "service": _service,
    }
    return actions[args.action](args)


def _settings(args: argparse.Namespace) -> "Settings":
    from twin_client.config import load

    return load(args.config)


def _init(args: argparse.Namespace) -> int:
    from targets.runtime.files import write_text
    from twin_client.config import load

    if args.config.exists():
        raise HighwallError(f"{args.config} is there already; change it, or name another file with --config")
    write_text(args.config, (DEMO if args.demo else EXAMPLE).format(gateway=args.name, folder=args.folder))
    try:
        load(args.config)
    except HighwallError:
        args.config.unlink()
        raise
    print(f"wrote {args.config}; look through it, then: highwall gateway selftest --config {args.config}")
    return 0


def _enroll(args: argparse.Namespace) -> int:
    from twin_client.clock import Clock
    from twin_client.services.registration import Registration

    settings = _settings(args)
    folder = Path(settings.folder)
    registration = Registration(folder / "identity", Clock(folder).stamp, settings.services.asking)
    registration.begin(args.url, args.code, settings.gateway, args.again)
    say = _say
    if args.no_wait:
        reply = asyncio.run(registration.ask())
        say("approved" if reply.state == "approved" else f"{reply.state}: {reply.text or 'waiting for a person'}")
        return 0
    identity = asyncio.run(registration.wait(say))
    say(f"enrolled as {identity.gateway}; the key has not left {identity.key.parent}")
    return 0


def _run(args: argparse.Namespace) -> int:
    settings = _settings(args)

    async def live() -> int:
        from twin_client.agent import Agent

        return await Agent(settings, _say).run()

    return asyncio.run(live())


def _status(args: argparse.Namespace) -> int:
    from twin_client import status

    found = status.status(_settings(args))
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(status.lines(found)))
    return 0 if found["running"] else 1


def _selftest(args: argparse.Namespace) -> int:
    from twin_client.selftest import selftest

    findings = []
    for finding in selftest(_settings(args)):
        findings.append(finding)
        if not args.json:
            print(f"{finding.verdict:4}  {finding.part}: {finding.text}", flush=True)
    if args.json:
        print(json.dumps([{"part": f.part, "verdict": f.verdict, "text": f.text} for f in findings], indent=2))
    return 1 if any(finding.verdict == "fail" for finding in findings) else 0


def _drain(args: argparse.Namespace) -> int:
    from twin_client import drain
    from twin_client.clock import Clock
    from twin_client.outbox import Outbox, Rows

    settings = _settings(args)
    folder = Path(settings.folder)
    if not args.to.is_dir():
        raise HighwallError(f"{args.to} is not there; is the stick mounted?")
    rows: Rows = (
        Outbox.open(folder, settings.gateway, settings.outbox, stamp=Clock(folder).stamp, say=_say)
        if args.forget  # which needs the outbox for itself: it says so where the agent has it
        else Rows.look(folder)
    )
    try:
        where, index = drain.drain(rows, settings.gateway, args.to, _progress)
        held = drain.check(where, index)
        gone = drain.forget(rows, held) if isinstance(rows, Outbox) else 0
    finally:
        rows.close()
    count, size = sum(file.rows for file in index.files), sum(file.size for file in index.files)
    if args.json:
        print(json.dumps({"folder": str(where), "files": len(index.files), "records": count, "forgotten": gone}))
    else:
        kept = f"{gone} of them left the outbox" if args.forget else "they stay in the outbox until the twin has them"
        print(f"{count} records in {len(index.files)} files, {size / 1e6:.1f} MB, lie in {where} and are whole; {kept}")
    return 0


def _pair(args: argparse.Namespace) -> int:
    from twin_client.pairing import Pairing, Tag, misspelt
    from twin_client.protocol.orders import Name
    from twin_client.protocol.site import faults

    settings = _settings(args)
    found = faults(Name, args.tag) + faults(Tag, {"type": args.type, "note": args.note})
    if why := "; ".join(found) or misspelt(args.type):
        raise HighwallError(f"{args.tag!a:.80} cannot be paired: {why}")
    Pairing(Path(settings.folder), settings.tags).pair(args.tag, Tag(args.type, args.note))
    print(f"{args.tag} is paired; a running agent takes it up within seconds")
    return 0


def _unpair(args: argparse.Namespace) -> int:
    from twin_client.pairing import Pairing

    settings = _settings(args)
    Pairing(Path(settings.folder), settings.tags).unpair(args.tag)
    print(f"{args.tag} is not paired any more")
    return 0


def _within(args: argparse.Namespace, **bounds: tuple[float, float]) -> None:
    """Raises HighwallError for a number that is out of its bounds; one that was not given is in them."""
    for name, (least, most) in bounds.items():
        given = getattr(args, name)
        if given is not None and not least <= given <= most:  # nor is NaN
            raise HighwallError(f"--{name} {given!s:.40} is not between {least} and {most}")


def _simulate(args: argparse.Namespace) -> int:
    from contextlib import ExitStack

    from twin_client.sources import simulate

    _within(
        args,
        seconds=(0, MOST_S),
        speed=SPEED,
        seed=(0, 2**63 - 1),
        boot=(0, 2**32 - 1),
        failure=(0.01, 1_000_000),
        lost=(0, 1),
        noise=(0, 1),
        unplug=(0, MOST_S),
    )
    from twin_client.simulation.pit import HOUR, Mine

    if args.images is not None:
        try:
            args.images.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HighwallError(f"cannot make {args.images}: {error.strerror or error}") from error
    boot = int(time.time()) % 2**32 if args.boot is None else args.boot
    images = 0.0 if args.images is None else 60.0
    mine = Mine(seed=args.seed, failure=args.failure * HOUR, images=images, boot=boot)
    with ExitStack() as files:
        written = {}
        for name in ("truth", "capture"):
            path = getattr(args, name)
            try:
                written[name] = None if path is None else files.enter_context(path.open("w", encoding="utf-8"))
            except OSError as error:
                raise HighwallError(f"cannot write {path}: {error.strerror or error}") from error
        line = files.enter_context(simulate.port(args.port))
        _say(f"the mine is at {args.port}; name it as the url of a port in gateway.toml")
        counts = simulate.play(
            mine.events(),
            line,
            seconds=args.seconds,
            speed=args.speed,
            weather=simulate.Weather(args.lost, args.noise, args.unplug),
            seed=args.seed,
            images=args.images,
            say=_say,
            **written,
        )
    print(json.dumps(counts) if args.json else ", ".join(f"{count} {name}" for name, count in counts.items()))
    return 0


def _replay(args: argparse.Namespace) -> int:
    from twin_client.sources import replay, simulate

    _within(args, speed=SPEED)
    if not args.file.exists():
        raise HighwallError(f"{args.file} does not exist")
    said = replay.chunks(args.file, _say)
    first = next(said)  # before there is a port: where there is nothing, that is all there is to say
    with simulate.port(args.port) as line:
        _say(f"replaying at {args.port}")
        count = replay.replay(chain([first], said), line, args.speed, _say)
    print(f"{count} pieces said again")
    return 0


def _service(args: argparse.Namespace) -> int:
    from twin_client.systemd import unit

    _settings(args)
    program = shutil.which("highwall")
    command = shlex.quote(program) if program else f"{shlex.quote(sys.executable)} -m highwall"
    print(unit(command, args.config.resolve(), args.user), end="")
    return 0


def _say(line: str) -> None:
    with suppress(OSError):  # where a full disk takes no log either, that must not be what ends the agent
        print(line, file=sys.stderr, flush=True)


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty() and not os.environ.get("NO_PROGRESS"):
        print(f"\r{done} of {total} records", end="" if done < total else "\n", file=sys.stderr, flush=True)
