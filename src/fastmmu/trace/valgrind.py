"""Valgrind's lackey: where it is, which programs it can run, and its command line.

Lackey writes what `trace/lackey_parse.pyx` reads. It has one log; so a program that forks gives several logs only if
each program that is started opens one of its own: Valgrind starts those through the command that VALGRIND_LAUNCHER
names, and ours (`_LAUNCHER`) gives each a connection to the recorder. Processes that share a connection, because they
were forked without starting another program, are told apart by the sender that the socket names (unix(7),
SCM_CREDENTIALS).
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from fastmmu.errors import ConfigError

__all__ = ["check_program", "find", "launcher", "options"]

_INSTALL = (
    ("apt-get", "apt install valgrind"),
    ("dnf", "dnf install valgrind"),
    ("zypper", "zypper install valgrind"),
    ("pacman", "pacman -S valgrind"),
    ("apk", "apk add valgrind"),
    ("pkg", "pkg install valgrind"),
)
_PLACES = ("/usr/libexec/valgrind", "/usr/lib/valgrind", "/usr/lib64/valgrind", "/usr/lib/x86_64-linux-gnu/valgrind",
           "/usr/local/libexec/valgrind", "/usr/local/lib/valgrind")  # fmt: skip
_NARROW = ("lackey-x86-linux", "lackey-arm-linux", "lackey-mips32-linux", "lackey-ppc32-linux")

_LAUNCHER = """\
import os, socket, sys

path, launcher, wide, narrow, *words = sys.argv[1:]
log = socket.socket(socket.AF_UNIX)
log.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
for option in (32, socket.SO_SNDBUF):  # SO_SNDBUFFORCE, of root alone
    try:
        log.setsockopt(socket.SOL_SOCKET, option, 1 << 23)
        break
    except OSError:
        pass
log.connect(path)
tool = wide
for i, word in enumerate(words):
    if word.startswith("--log-fd="):
        try:
            os.close(int(word[9:]))
        except OSError:
            pass
        words[i] = f"--log-fd={log.fileno()}"
    elif not word.startswith("--"):
        try:
            with open(word, "rb") as program:
                tool = narrow if program.read(5) == b"\\x7fELF\\x01" else wide
        except OSError:
            pass
        break
os.set_inheritable(log.fileno(), True)
os.execve(tool, [tool, *words], {**os.environ, "VALGRIND_LAUNCHER": launcher})
"""


def find() -> str:
    """Where Valgrind is.

    :raises ConfigError: it is not installed; the message has the line that installs it.
    """
    found = shutil.which("valgrind")
    if found is None:
        line = next((line for tool, line in _INSTALL if shutil.which(tool)), "https://valgrind.org has it")
        raise ConfigError(f"recording needs Valgrind, which is not installed: {line}")
    return found


def options(log: int, *, children: bool) -> list[str]:
    """What Valgrind is told. A process that the program forks says nothing, unless `children` are asked for."""
    follow = ["--trace-children=yes"] if children else ["--trace-children=no", "--child-silent-after-fork=yes"]
    return ["--command-line-only=yes", "--tool=lackey", "--trace-mem=yes", *follow, f"--log-fd={log}"]


def launcher(folder: Path, path: str) -> Path:
    """A command in `folder` that runs Valgrind's lackey with a connection to the socket at `path` for its log.

    It runs the tool itself: Valgrind's own command would make itself the one that starts programs.

    :raises ConfigError: the tool is not found.
    """
    tools = {tool.name: str(tool) for tool in _tools()}
    wide = next((tool for name, tool in tools.items() if name not in _NARROW), None)
    if wide is None:
        raise ConfigError(
            "the folder of Valgrind's tools is not found; VALGRIND_LIB=FOLDER names the one with lackey-*"
        )
    narrow = next((tool for name, tool in tools.items() if name in _NARROW), wide)
    script, command = folder / "launch.py", folder / "launch"
    script.write_text(_LAUNCHER)
    words = " ".join(_quoted(word) for word in (sys.executable, "-IS", str(script), path, str(command), wide, narrow))
    command.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    command.chmod(0o700)
    return command


def _tools() -> list[Path]:
    places = [Path(place) for place in (os.environ.get("VALGRIND_LIB"), *_PLACES) if place]
    return next((found for place in places if (found := sorted(place.glob("lackey-*-linux")))), [])


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def check_program(words: Sequence[str]) -> None:
    """Refuse what cannot be run, before anything is written.

    :raises ConfigError: there is no such program, it may not be executed, or Valgrind cannot run it.
    """
    if not words or not words[0]:
        raise ConfigError("no program is named; write it behind --, as in: fastmmu record -- ls -l")
    name = words[0]
    if any("\0" in word for word in words):
        raise ConfigError(f"{name!r:.80} and its arguments may hold no zero byte; leave it out")
    found = name if "/" in name else shutil.which(name)
    if found is None:
        beside = (
            f"; for the one in this folder write ./{name}" if os.path.exists(name) else "; check the name, or $PATH"
        )
        raise ConfigError(f"{name}: there is no such program{beside}")
    try:
        status = os.stat(found)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}; name a program") from error
    if stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{name}: this is a directory; name a program")
    if not os.access(found, os.X_OK):
        raise ConfigError(f"{name}: it may not be executed; chmod +x {name}, or name its interpreter in front of it")
    if status.st_mode & (stat.S_ISUID | stat.S_ISGID) or _capable(found):
        raise ConfigError(
            f"{name}: Valgrind runs no program that gains rights (setuid, setgid, capabilities); record a copy of it "
            f"without them: cp {found} /tmp"
        )
    _check_width(name, found)


def _capable(path: str) -> bool:
    try:
        return "security.capability" in os.listxattr(path)
    except (OSError, AttributeError):
        return False


def _check_width(name: str, path: str) -> None:
    """A 32-bit program takes a tool of its own."""
    try:
        with open(path, "rb") as file:
            head = file.read(5)
    except OSError:
        return
    tools = {tool.name for tool in _tools()}
    if head == b"\x7fELF\x01" and tools and not tools & {*_NARROW}:
        raise ConfigError(
            f"{name}: this is a 32-bit program, and this Valgrind runs 64-bit ones; install valgrind:i386, or "
            "record a 64-bit build"
        )
