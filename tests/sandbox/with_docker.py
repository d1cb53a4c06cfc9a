"""Runs a command beside a Docker daemon of its own, out of Debian's or Ubuntu's packages; nothing is installed.

    python tests/sandbox/with_docker.py pytest tests/sandbox/docker.py

The daemon is a real one, with a socket, a state and an image (Python, a shell, the usual tools) of its own; the
command finds them in `DOCKER_HOST` and `UPSWING_TEST_IMAGE`. Needs root and apt-get. The packages stay in `.cache`.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".cache" / "docker"
DAEMON = ["docker.io", "containerd", "runc", "tini", "iptables"]
DAEMON += ["libip4tc2", "libip6tc2", "libxtables12", "libnetfilter-conntrack3", "libnfnetlink0", "libnftnl11"]
INSIDE = [
    "python3",
    "bash",
    "dash",
    "coreutils",
    "sed",
    "grep",
    "tar",
    "procps",
    "findutils",
    "base-files",
    "base-passwd",
]


def packages() -> list[str]:
    """What is inside, and what that depends on."""
    options = ["--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces"]
    listed = subprocess.run(
        ["apt-cache", "depends", *options, "--no-enhances", *INSIDE], capture_output=True, text=True
    )
    names = {line for line in listed.stdout.splitlines() if line and line[0] not in " <|"}
    return sorted(name for name in names if ":" not in name and "perl" not in name and "debconf" not in name)


def unpack(names: list[str], target: Path) -> None:
    """Downloads packages and unpacks them into a folder."""
    debs = target.with_name(target.name + ".debs")
    debs.mkdir(parents=True)
    subprocess.run(["apt-get", "download", "-qq", *names], cwd=debs, check=True, stderr=subprocess.DEVNULL)
    for deb in sorted(debs.glob("*.deb")):
        subprocess.run(["dpkg", "-x", deb, target], check=True)


def prepare() -> None:
    """The daemon's programs and the image's files."""
    if not (CACHE / "daemon" / "usr").exists():
        unpack(DAEMON, CACHE / "daemon")
    root = CACHE / "image"
    if not (root / "etc" / "passwd").exists():
        unpack(packages(), root)
        for folder in ("doc", "locale", "man"):
            subprocess.run(["rm", "-rf", root / "usr" / "share" / folder], check=True)
        (root / "bin" / "sh").unlink(missing_ok=True)
        (root / "bin" / "sh").symlink_to("dash")
        (root / "etc" / "passwd").write_bytes((root / "usr/share/base-passwd/passwd.master").read_bytes())


def main(command: list[str]) -> int:
    """The command's exit code; the daemon has ended when this returns. Where there can be none, it says so, and 0."""
    try:
        prepare()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"WARNING: no docker daemon can be had here ({error}): NO DOCKER SANDBOX IS TESTED", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory(prefix="upswing-docker-") as folder:
        host, programs = f"unix://{folder}/socket", CACHE / "daemon" / "usr"
        path = f"{programs}/sbin:{programs}/bin:{os.environ['PATH']}"
        argv = ["dockerd", "--host", host, "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
        argv += ["--pidfile", f"{folder}/pid", "--bridge", "none", "--iptables=false", "--ip6tables=false"]
        env = {**os.environ, "PATH": path, "DOCKER_HOST": host, "UPSWING_TEST_IMAGE": "upswing-test:1"}
        with Path(folder, "log").open("wb") as log:
            daemon = subprocess.Popen([*argv, "--oom-score-adjust", "0"], env=env, stdout=log, stderr=log)
        try:
            while not Path(folder, "socket").exists() and daemon.poll() is None:
                time.sleep(0.1)
            if daemon.poll() is not None:
                said = Path(folder, "log").read_text()[-2000:]
                print(f"{said}\nWARNING: no docker daemon runs here: NO DOCKER SANDBOX IS TESTED", file=sys.stderr)
                return 0
            archive = subprocess.Popen(["tar", "-C", CACHE / "image", "-c", "."], stdout=subprocess.PIPE)
            subprocess.run(["docker", "import", "-", "upswing-test:1"], env=env, stdin=archive.stdout, check=True)
            return subprocess.run(command, env=env).returncode
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
