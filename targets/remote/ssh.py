"""The user's own ssh: how it is called, whom it may call, and what its complaints mean.

HIGHWALL_SSH_CONFIG names another file than ~/.ssh/config.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Final

from targets.runtime.errors import HighwallError, plain

CONFIG: Final = "HIGHWALL_SSH_CONFIG"
_HOST: Final = re.compile(r"(ssh://)?(\w[\w.+-]*@)?[\w\[:][\w.:%\[\]-]*", re.ASCII)
OPTIONS: Final = {
    "BatchMode": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
    "ClearAllForwardings": "yes",
    "Compression": "yes",
    "ControlMaster": "no",  # one that this ssh left behind would hold our pipes open
    "LogLevel": "ERROR",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
}
# What ssh says -> what to do; the first that occurs in it counts.
_FAULTS: Final = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "its host key is not the one known for it: another machine answers, or "
    "its system was installed anew; find out which, then forget the old key: {forget}",
    "Host key verification failed": "its host key is unknown here; connect once by hand (`ssh {host}`) and compare it",
    "Could not resolve hostname": "no such name here; check it, or give an address",
    "Connection refused": "nothing listens for ssh there; is sshd enabled (raspi-config, Interface Options)?",
    "timed out": "no answer; is it switched on, and within reach?",
    "No route to host": "not within reach; are both on the same network?",
    "Network is unreachable": "not within reach; are both on the same network?",
}


def command() -> list[str]:
    """How ssh is called; more options, `--` and the host follow."""
    config = os.environ.get(CONFIG)
    options = (part for key, value in OPTIONS.items() for part in ("-o", f"{key}={value}"))
    return ["ssh", *(["-F", config] if config else []), *options]


def check_host(host: str) -> None:
    """Raise HighwallError for a word that ssh could take for anything but a machine's name."""
    if not _HOST.fullmatch(host):
        raise HighwallError(f"{plain(host)!r} is no [USER@]HOST; give a name, an address or an alias of ~/.ssh/config")


def meaning(host: str, said: str, code: int) -> str:
    """What ssh, which ended with `code`, complained about, and what to do."""
    for words, mend in _FAULTS.items():
        if words in said:
            forget = re.search(r'ssh-keygen -f "[^"]*" -R "[^"]*"', said)  # Debian's ssh knows where it stands
            return mend.format(host=host, forget=forget[0] if forget else f"ssh-keygen -R {host.rpartition('@')[2]}")
    if "Permission denied" in said or "Too many authentication failures" in said:
        return f"it takes none of your keys; {_key_mend(host)}"
    return f"ssh ended with code {code}: {plain(said) or 'it said nothing; does a shell start there?'}"


def _key_mend(host: str) -> str:
    """How to have a key taken: with one that ssh would offer, or by making one."""
    done = subprocess.run([*command(), "-G", "--", host], capture_output=True, text=True, errors="replace", check=False)
    named = (line.partition(" ")[2] for line in done.stdout.splitlines() if line.startswith("identityfile "))
    for key in named:
        public = Path(f"{key}.pub").expanduser()
        if public.exists():
            return f"put this one there: ssh-copy-id -i {shlex.quote(str(public))} {host}"
    return f"make one (ssh-keygen), put it there (ssh-copy-id {host}); one with a passphrase belongs in ssh-agent"
