"""The directory of a run: everything there is to know about it, and the only thing reports and tools read.

config.yaml      the composed config                 metrics.jsonl   one line per update
run.json         status, machine, versions           rollouts/       training trajectories, Parquet per update
checkpoints/     Orbax, per stage                    evals/          held-out rollouts before and after
tasks.jsonl      with a pool of tasks: rewards by task
summary.json     before, after, gain                 report.html, reward.png
"""

import datetime
import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from envs.errors import ConfigError, UpswingError
from rl.machine import machine, versions

PACKAGES = ("upswing", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
UNCOMPARED = ("run_dir", "resume", "fail_under")
"""Settings that say where and how a run goes on, not what it is."""


class RunDir:
    """A run directory that this process, and no other, is writing to."""

    def __init__(self, path: Path, info: dict[str, Any], lock: int) -> None:
        self.path = path
        self._info = info
        self._lock = lock
        self._begun = time.perf_counter() - float(info.get("seconds", 0.0))

    @classmethod
    def open(cls, path: Path | None, name: str, config: str, *, resume: bool, root: Path = Path("runs")) -> "RunDir":
        """Makes a run directory, or takes up an unfinished one.

        Args:
            path: where; None makes `root/name`, numbered if that exists, or with `resume` takes the newest unfinished
                run below `root` that has this very config.
            name: what the run is about, for its folder.
            config: the composed config as YAML.
            resume: take up a run that was begun with this config. One that failed before it made anything, with
                settings that had to be mended, begins anew with any.
            root: where runs lie.

        Raises:
            UpswingError: when the directory holds something else, another config, a finished run, or is in use; when
                there is nothing to resume.
        """
        if path is None:
            path = _newest_unfinished(root, config) if resume else _unused(root, name)
        if path.exists() and not path.is_dir():
            raise UpswingError(f"{path} is a file; expected a folder for the run, name another one with run_dir=…")
        held = {p.name for p in path.iterdir()} if path.is_dir() else set()
        if held and "config.yaml" not in held:
            found = ", ".join(sorted(held)[:5])
            raise UpswingError(f"{path} holds {found}, but no run; name an empty or new folder with run_dir=…")
        begun = bool(held) and not _failed_at_once(path, held)
        if begun:
            _check_resumable(path, config, resume)
        elif resume and not path.is_dir():
            raise UpswingError(f"there is no run at {path} to resume; leave resume=true out to begin one there")
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        info = json.loads((path / "run.json").read_text()) if begun and (path / "run.json").is_file() else {}
        _warn_about_cores(path, info)
        if not begun:
            write_text(path / "config.yaml", config)
        return cls(path, {"started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **info}, lock)

    def describe(self, **facts: Any) -> None:
        """Adds facts to `run.json`: the environment, the number of parameters …"""
        self._info |= {"machine": machine(), "versions": versions(*PACKAGES), **facts}
        self.status("running")

    def status(self, status: str, error: str | None = None) -> None:
        """Writes `run.json`. Status: running, finished, interrupted or failed."""
        self._info |= {"status": status, "error": error, "seconds": round(time.perf_counter() - self._begun, 1)}
        write_text(self.path / "run.json", json.dumps(self._info, indent=2, ensure_ascii=False) + "\n")

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a line to `metrics.jsonl`. `step` counts from 1 within the stage."""
        row = {"stage": stage, "step": step, **{k: float(f"{v:.7g}") for k, v in metrics.items()}}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def forget(self, stage: str, after: int) -> None:
        """Drops what was logged in a stage after step `after`: those updates are about to be made again."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return
        whole = [line for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
        rows = [(json.loads(line), line) for line in whole]
        kept = [line for row, line in rows if row["stage"] != stage or row["step"] <= after]
        write_text(path, "".join(kept))

    def summarise(self, summary: Mapping[str, Any]) -> None:
        write_text(self.path / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")

    def summary(self) -> dict[str, Any]:
        """What `summarise` wrote."""
        found: dict[str, Any] = json.loads((self.path / "summary.json").read_text("utf-8"))
        return found

    def seconds(self, stage: str) -> float:
        """Wall time of the updates of a stage, over all the processes that made them."""
        path = self.path / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
        return round(sum(row["seconds"] for row in rows if row["stage"] == stage), 1)

    def close(self) -> None:
        os.close(self._lock)


def same_config(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The settings, dotted, in which two composed configs differ; what only says where a run lies is not compared."""
    flat_a, flat_b = _flat(a), _flat(b)
    keys = [k for k in {**flat_a, **flat_b} if k not in UNCOMPARED]
    return [k for k in keys if flat_a.get(k, _MISSING) != flat_b.get(k, _MISSING)]


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step: a reader, or a kill, sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


_MISSING = object()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _unused(root: Path, name: str) -> Path:
    path, number = root / name, 1
    while path.exists():
        number += 1
        path = root / f"{name}-{number}"
    return path


def _newest_unfinished(root: Path, config: str) -> Path:
    wanted = yaml.safe_load(config)
    unfinished = [
        info.parent
        for info in sorted(root.glob("*/run.json"), key=lambda p: p.stat().st_mtime, reverse=True)
        if json.loads(info.read_text("utf-8")).get("status") != "finished"
    ]
    for path in unfinished:
        if not same_config(yaml.safe_load((path / "config.yaml").read_text("utf-8")), wanted):
            return path
    hint = ""
    if unfinished:
        differing = same_config(yaml.safe_load((unfinished[0] / "config.yaml").read_text("utf-8")), wanted)
        hint = f"; the newest unfinished one, {unfinished[0]}, differs in {', '.join(differing[:4])}"
    raise UpswingError(
        f"nothing to resume: no unfinished run below {root}/ has this config{hint}; leave resume=true out"
    )


def _failed_at_once(path: Path, held: set[str]) -> bool:
    """Whether a run failed before it made anything that could be lost."""
    if held != {"config.yaml", "run.json", ".lock"}:
        return False
    return bool(json.loads((path / "run.json").read_text("utf-8")).get("status") == "failed")


def _check_resumable(path: Path, config: str, resume: bool) -> None:
    known = yaml.safe_load((path / "config.yaml").read_text("utf-8"))
    info = path / "run.json"
    status = json.loads(info.read_text("utf-8")).get("status") if info.is_file() else "just begun"
    if not resume:
        way = (
            "name another folder with run_dir=…"
            if status == "finished"
            else "continue it with resume=true, or name another folder with run_dir=…"
        )
        raise UpswingError(f"{path} already holds a run ({status}); {way}")
    if status == "finished":
        raise UpswingError(f"the run in {path} is finished; see it with: rl report {path}")
    differing = same_config(known, yaml.safe_load(config))
    if differing:
        now = _flat(yaml.safe_load(config))
        then = _flat(known)
        shown = ", ".join(f"{k} was {then.get(k, 'absent')}, now {now.get(k, 'absent')}" for k in differing[:4])
        raise ConfigError(f"{path} was begun with another config: {shown}; resume it with the same settings")


def _lock(path: Path) -> int:
    """Holds the directory for this process; the system lets go of it however the process ends."""
    file = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(file, 32).decode() or "?"
        os.close(file)
        raise UpswingError(
            f"{path} is in use by another process (pid {holder}); wait for it, or stop it first"
        ) from None
    os.ftruncate(file, 0)
    os.write(file, str(os.getpid()).encode())
    return file


def _warn_about_cores(path: Path, info: Mapping[str, Any]) -> None:
    before = info.get("machine", {}).get("cores")
    now = machine()["cores"]
    if before is not None and before != now:
        print(
            f"note: {path} was begun on {before} cores and goes on with {now}: XLA's last bits will differ", flush=True
        )
