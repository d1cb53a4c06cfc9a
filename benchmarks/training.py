"""Does reinforcement help? An experiment for several seeds, each in a process of its own.

Keys of the result: `seed_N.before`, `seed_N.after`, `seed_N.gain` (held-out mean of the `metric` that the experiment
leads with), each with `_low` and `_high` (95 %, the gain's paired by task); `seed_N.train_s` (reinforcement),
`seed_N.warm_start_s`, `seed_N.wall_s` and `seed_N.cpu_s` (the whole command); `least_gain`, `least_gain_low`,
`least_after`; `tasks` that were evaluated, `experiment`, `settings`, `load_1m`, `machine`, `versions`.

    python benchmarks/training.py                             # reverse_text: four minutes per seed on two idle cores
    python benchmarks/training.py --readme README.md          # and writes the table into its block `seeds`
    python benchmarks/training.py tool_calls steps=6 --seeds 1  # another experiment, a setting of its own, one seed
    python benchmarks/training.py tool_calls --runs runs/tools  # keeps the runs; those that are finished are only read
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import arguments, emit, machine, provenance, run, versions, write_block
from envs.errors import ConfigError, unknown_name

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "conf" / "experiment"
COST = "cost.json"
"""What a run's command was and took, beside its `summary.json`; written when it has ended well."""

Summary = Mapping[str, Any]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("experiment", nargs="?", default="reverse_text", help="of conf/experiment: %(default)s")
    parser.add_argument("settings", nargs="*", default=[], help="further settings for rl train, KEY=VALUE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="1 2 3")
    parser.add_argument("--runs", type=Path, help="keep the runs in this folder, and read those that are finished")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="write the table into the file's block `seeds`")
    options = parser.parse_args()
    known, load = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml")), round(os.getloadavg()[0], 1)
    if options.experiment not in known:
        raise unknown_name("experiment", options.experiment, known)
    with tempfile.TemporaryDirectory() as scratch:
        runs = (options.runs or Path(scratch)).resolve()
        summaries = {
            seed: trained(options.experiment, seed, options.settings, runs / f"seed{seed}") for seed in options.seeds
        }
    result = {
        "experiment": options.experiment, "settings": options.settings, "load_1m": load, **numbers(summaries),
        "machine": machine(), "versions": versions("upswing", "jax", "flax", "optax"),
    }  # fmt: skip
    text = f"{table(summaries)}\n\n{provenance(result)}"
    print(text, file=sys.stderr)
    if options.readme:
        write_block(options.readme, "seeds", text)
    emit(options.experiment, result, append=options.append)


def trained(experiment: str, seed: int, settings: Sequence[str], run_dir: Path) -> Summary:
    """One seed, trained unless that is done; returns its `summary.json` with `wall_s` and `cpu_s`."""
    told = [f"experiment={experiment}", f"seed={seed}", *settings]
    if not (run_dir / COST).is_file():
        command = [sys.executable, "-m", "rl.cli.train", *told, f"run_dir={run_dir}"]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        code = subprocess.run(command, cwd=ROOT, check=False, stdout=sys.stderr).returncode
        if code:
            sys.exit(code)  # it has said why
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        taken = {"told": told, "wall_s": round(time.perf_counter() - started, 1), "cpu_s": round(cpu, 1)}
        (run_dir / COST).write_text(json.dumps(taken), "utf-8")
    cost = _read(run_dir / COST)
    if cost["told"] != told:
        raise ConfigError(
            f"{run_dir} is a run of `{' '.join(cost['told'])}`; expected `{' '.join(told)}`; give --runs another folder"
        )
    return {**_read(run_dir / "summary.json"), **cost}


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def numbers(summaries: Mapping[int, Summary]) -> dict[str, Any]:
    """The keys of the result that come from the runs."""
    result: dict[str, Any] = {}
    for seed, s in summaries.items():
        for side in ("before", "after", "gain"):
            low, high = s[side]["ci95"]
            result |= {f"seed_{seed}.{side}": s[side][s["metric"]]}
            result |= {f"seed_{seed}.{side}_low": low, f"seed_{seed}.{side}_high": high}
        result |= {
            f"seed_{seed}.train_s": s["train_seconds"],
            f"seed_{seed}.warm_start_s": s["warm_start_seconds"],
            f"seed_{seed}.wall_s": s["wall_s"],
            f"seed_{seed}.cpu_s": s["cpu_s"],
        }
    first = next(iter(summaries.values()))
    return {
        **result,
        "metric": first["metric"],
        "tasks": first["before"]["tasks"],
        "least_gain": min(s["gain"][s["metric"]] for s in summaries.values()),
        "least_gain_low": min(s["gain"]["ci95"][0] for s in summaries.values()),
        "least_after": min(s["after"][s["metric"]] for s in summaries.values()),
    }


def table(summaries: Mapping[int, Summary]) -> str:
    """Markdown: before, after and gain of each seed, with 95 % intervals, and what it took."""
    lines = ["| seed | before | after | gain | RL | whole command | CPU |", "|---|---|---|---|---|---|---|"]
    for seed, s in summaries.items():
        gain, (low, high) = s["gain"][s["metric"]], s["gain"]["ci95"]
        lines.append(
            f"| {seed} | {_with_interval(s['before'][s['metric']], s['before']['ci95'])} "
            f"| {_with_interval(s['after'][s['metric']], s['after']['ci95'])} "
            f"| **{gain:+.2f}** ({low:+.2f} to {high:+.2f}) "
            f"| {s['train_seconds']:.0f} s | {s['wall_s']:.0f} s | {s['cpu_s']:.0f} s |"
        )
    return "\n".join(lines)


def _with_interval(value: float, bounds: Sequence[float]) -> str:
    return f"{value:.2f} ({bounds[0]:.2f} to {bounds[1]:.2f})"


if __name__ == "__main__":
    run(main)
