"""What systemd is told of the agent, and the unit that runs it; nothing happens where there is no systemd."""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

WATCHDOG_S: Final = 60

UNIT: Final = """\
[Unit]
Description=Highwall twin client
# A device group that the kernel does not know yet when this starts is not allowed later, when somebody plugs it in.
Wants=modprobe@usbserial.service modprobe@cdc_acm.service modprobe@videodev.service
After=network.target modprobe@usbserial.service modprobe@cdc_acm.service modprobe@videodev.service
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command} gateway run --config {config}
Restart=always
RestartSec=5
WatchdogSec={watchdog}
TimeoutStopSec=10
NotifyAccess=main

User={user}
SupplementaryGroups=dialout video
StateDirectory=highwall
RuntimeDirectory=highwall
UMask=0077

NoNewPrivileges=true
# Without capabilities nobody sets the clock. ProtectClock= would forbid as well to ask whether NTP holds it.
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=true
PrivateTmp=true
ProtectKernelTunables=true
ProtectKernelModules=true
ProtectKernelLogs=true
ProtectControlGroups=true
ProtectHostname=true
ProtectProc=invisible
ProcSubset=all
LockPersonality=true
RestrictNamespaces=true
RestrictRealtime=true
RestrictSUIDSGID=true
RemoveIPC=true
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
# By these the kernel tells whether NTP holds the clock.
SystemCallFilter=adjtimex clock_adjtime clock_adjtime64
# What else is called fails: an agent that is killed at each start, or a camera's command at each image, is no safer.
SystemCallErrorNumber=EPERM
DevicePolicy=closed
DeviceAllow=char-ttyUSB rw
DeviceAllow=char-ttyACM rw
DeviceAllow=char-ttyAMA rw
DeviceAllow=char-ttyS rw
DeviceAllow=char-video4linux rw
# libcamera (rpicam-still) finds its camera through the media controllers, and has its buffers from a DMA heap.
DeviceAllow=char-media rw
DeviceAllow=char-dma_heap rw
MemoryHigh=384M
MemoryMax=512M
TasksMax=64

[Install]
WantedBy=multi-user.target
"""


def unit(command: str, config: Path, user: str = "highwall") -> str:
    """The service file: `command` is how highwall is called, `config` the gateway's own file, both absolute."""
    return UNIT.format(command=command, config=config, user=user, watchdog=WATCHDOG_S)


def notify(*words: str) -> None:
    """Tell systemd, such as `READY=1` or `STATUS=...`; what it does not hear is no reason to stop."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
        line.setblocking(False)
        line.sendto("\n".join(words).encode(), address)


def watchdog() -> float | None:
    """Seconds within which systemd wants to hear `WATCHDOG=1`; None: it does not."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not usec.isdigit() or pid != str(os.getpid()):
        return None
    return int(usec) / 1e6
