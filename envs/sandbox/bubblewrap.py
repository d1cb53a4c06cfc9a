"""Sandboxes out of Linux namespaces by way of bubblewrap: the default where it works.

Nothing of the machine is seen but its programs, read-only; there is no network, no other process, no right to change
that, and no way back. In layers, from the outside: a mount namespace with one small tmpfs for all files; a user
id of the sandbox's own (as root); limits that programs cannot raise; namespaces for users, processes, network, mounts,
names and shared memory, without capabilities; a filter of system calls; and a warden that counts memory and time.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from envs.errors import ConfigError, InfrastructureError
from envs.sandbox import slots
from envs.sandbox.base import Limits
from envs.sandbox.seccomp import seccomp_filter
from envs.sandbox.warded import WARDEN, WardedSandbox, warden_limits

WORK = "/work"

_PROGRAMS = ("bwrap", "unshare", "setpriv", "prlimit", "choom", "mount", "install")
_PREPARE = """
mount -t tmpfs -o "$1" upswing "$2" && install -d -m 700 $3 "$2/work" "$2/tmp" "$2/shm" && shift 3 && exec "$@"
"""
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000::/work:/bin/sh\n"


@dataclass(frozen=True)
class Bubblewrap:
    """Makes sandboxes with `bwrap` (Debian's and Ubuntu's package `bubblewrap`) and util-linux.

    As root every sandbox gets a user id of its own. Without root it needs unprivileged user namespaces, and
    sandboxes share the user's id outside.

    Attributes:
        readonly: folders of the machine to show besides `/usr`, by the path inside.
        python: the Python to run the warden and `python` with; by default the one that runs this, if a user without
            rights can read it, else `/usr/bin/python3`.
    """

    readonly: Mapping[str, str] = field(default_factory=dict)
    python: str = ""

    async def start(self, limits: Limits) -> WardedSandbox:
        """A new sandbox, in a few hundredths of a second. Its working folder is `/work`.

        Raises:
            ConfigError: bubblewrap is not installed, or there is no Python to use.
            InfrastructureError: it did not start.
        """
        _require_programs()
        python, shown = find_python(self.python)
        slot = slots.acquire() if os.geteuid() == 0 else None
        files = [_memory_file(data) for data in (seccomp_filter(), WARDEN.read_bytes(), _PASSWD)]
        release = slot.release if slot is not None else lambda: None
        try:
            inside = _inside(limits, {**shown, **self.readonly}, python, files)
            argv = [*_outside(limits, None if slot is None else slot.uid), *inside]
            return await WardedSandbox.start(argv, limits, what="bubblewrap", release=release, pass_fds=files)
        except InfrastructureError as error:
            raise _explained(error) from error
        finally:
            for fd in files:
                os.close(fd)

    async def reap(self) -> int:
        """Ends the processes of sandboxes whose owner crashed. (The kernel does so itself in nearly every case.)"""
        return slots.reap() if os.geteuid() == 0 else 0


def _outside(limits: Limits, uid: int | None) -> list[str]:
    """The commands around bwrap; each gives way to the next."""
    folder = str(slots.state_folder() / "mount")
    options = f"size={limits.disk},nr_inodes={limits.files},mode=711,nosuid,nodev"
    owner = "" if uid is None else f"-o {uid} -g {uid}"
    spare = limits.processes + 4  # bwrap's own two, the warden, and room for it to fork
    argv = ["unshare", "--mount", "--propagation", "private"]
    argv += [] if uid is not None else ["--user", "--map-root-user"]
    argv += ["--", "sh", "-c", _PREPARE, "sh", options, folder, owner]
    argv += ["choom", "-n", "1000", "--"]  # if memory runs out on the machine, this goes first
    argv += ["prlimit", f"--nproc={spare}", "--nofile=1024", "--core=0", "--memlock=65536", "--msgqueue=0", "--"]
    if uid is not None:
        argv += ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs", "--"]
    return argv


def _inside(limits: Limits, readonly: Mapping[str, str], python: str, files: list[int]) -> list[str]:
    """bwrap and what it becomes."""
    folder = slots.state_folder() / "mount"
    seccomp, warden, passwd = files
    argv = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    argv += [] if limits.network == "host" else ["--unshare-net"]
    argv += ["--disable-userns", "--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--cap-drop", "ALL"]
    argv += ["--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"]
    path = os.pathsep.join(dict.fromkeys([str(Path(python).parent), "/usr/local/bin", "/usr/bin", "/bin"]))
    environment = {"PATH": path, "HOME": WORK, "TMPDIR": "/tmp", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    for name, value in environment.items():
        argv += ["--setenv", name, value]
    argv += ["--ro-bind", "/usr", "/usr"]
    for top in ("bin", "sbin", "lib", "lib32", "lib64"):
        if Path("/", top).is_symlink():
            argv += ["--symlink", str(Path("/", top).readlink()), f"/{top}"]
        elif Path("/", top).is_dir():
            argv += ["--ro-bind", f"/{top}", f"/{top}"]
    shown = ["alternatives", "ld.so.cache", "localtime"]
    shown += ["resolv.conf", "ssl", "hosts", "ca-certificates"] if limits.network == "host" else []
    for name in shown:
        argv += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for inside, source in readonly.items():
        argv += ["--ro-bind", source, inside]
    argv += ["--ro-bind-data", str(passwd), "/etc/passwd", "--perms", "0444"]
    argv += ["--ro-bind-data", str(warden), "/run/warden.py", "--proc", "/proc", "--dev", "/dev"]
    argv += ["--bind", f"{folder}/shm", "/dev/shm", "--bind", f"{folder}/tmp", "/tmp", "--bind", f"{folder}/work", WORK]
    argv += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", WORK, "--seccomp", str(seccomp)]
    return [*argv, "--", python, "-I", "-S", "/run/warden.py", warden_limits(limits)]


def find_python(wanted: str = "") -> tuple[str, dict[str, str]]:
    """A Python that anybody may run, and the folders to show for it besides `/usr`, by the path inside.

    Raises:
        ConfigError: if there is none.
    """
    mine = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    for candidate in [Path(wanted)] if wanted else [mine, Path("/usr/bin/python3")]:
        if candidate.is_file() and all(parent.stat().st_mode & 0o005 == 0o005 for parent in candidate.parents):
            prefix = str(candidate.parent.parent)
            return str(candidate), {} if prefix.startswith("/usr") else {prefix: prefix}
    raise ConfigError(
        f"no Python for the sandbox: {wanted or mine} is missing, or not readable for users without rights; "
        "install one into /usr (apt-get install python3), or name one with Bubblewrap(python=…)"
    )


def _require_programs() -> None:
    if sys.platform != "linux":
        raise ConfigError(f"bubblewrap needs Linux; this is {sys.platform}. Run inside a Linux machine or container")
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        raise ConfigError(
            f"the bubblewrap sandbox needs {', '.join(missing)}; install with `apt-get install bubblewrap util-linux` "
            "(Fedora: `dnf install bubblewrap util-linux`)"
        )


def _explained(error: InfrastructureError) -> Exception:
    text = str(error)
    if "uid map" in text or "ot permitted" in text or "ermission denied" in text or "No permissions to create" in text:
        return ConfigError(
            f"{text}\nThis machine does not let bubblewrap make namespaces. Run as root, or allow them: "
            "`sysctl kernel.unprivileged_userns_clone=1` (Debian), "
            "`sysctl kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu), `--privileged` (in Docker)"
        )
    return error


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("upswing")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
