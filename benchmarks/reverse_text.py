"""Does reinforcement help? The README's experiment for three seeds, each in a process of its own.

Keys of the result: `seed_N.before`, `seed_N.after`, `seed_N.gain` (held-out exact match), `seed_N.gain_low` and
`seed_N.gain_high` (paired 95 % interval), `seed_N.train_s` (reinforcement), `seed_N.warm_start_s`, `seed_N.wall_s` and
`seed_N.cpu_s` (the whole command); `least_gain`, `least_after`; `machine`, `versions`.

    python benchmarks/reverse_text.py                 # about four minutes per seed on two idle cores
    python benchmarks/reverse_text.py --readme        # and writes the table into README.md
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import arguments, emit, machine, versions, write_block

ROOT = Path(__file__).parents[1]
SEEDS = (1, 2, 3)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    parser.add_argument("settings", nargs="*", help="further settings for rl train, KEY=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        summaries = {seed: run(seed, Path(folder) / f"seed{seed}", options.settings) for seed in SEEDS}
    result: dict[str, Any] = {}
    for seed, s in summaries.items():
        low, high = s["gain"]["ci95"]
        result |= {
            f"seed_{seed}.before": s["before"]["exact_match"],
            f"seed_{seed}.after": s["after"]["exact_match"],
            f"seed_{seed}.gain": s["gain"]["exact_match"],
            f"seed_{seed}.gain_low": low,
            f"seed_{seed}.gain_high": high,
            f"seed_{seed}.train_s": s["train_seconds"],
            f"seed_{seed}.warm_start_s": s["warm_start_seconds"],
            f"seed_{seed}.wall_s": s["wall_s"],
            f"seed_{seed}.cpu_s": s["cpu_s"],
        }
    result |= {"machine": machine(), "versions": versions("upswing", "jax", "flax", "optax")}
    result["least_gain"] = min(s["gain"]["exact_match"] for s in summaries.values())
    result["least_after"] = min(s["after"]["exact_match"] for s in summaries.values())
    if options.readme:
        write_block(ROOT / "README.md", "seeds", table(summaries))
    emit("reverse_text", result, append=options.append)


def run(seed: int, run_dir: Path, settings: list[str]) -> dict[str, Any]:
    """One seed; returns its `summary.json` with `wall_s` and `cpu_s`."""
    command = [sys.executable, "-m", "rl.cli.train", "experiment=reverse_text", f"seed={seed}", f"run_dir={run_dir}"]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*command, *settings], cwd=ROOT, check=True, stdout=sys.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return {**summary, "wall_s": round(time.perf_counter() - started, 1), "cpu_s": round(cpu, 1)}


def table(summaries: dict[int, dict[str, Any]]) -> str:
    """The README's table: held-out exact match before and after, per seed."""
    lines = ["| seed | before | after | gain | RL | whole command | CPU |", "|---|---|---|---|---|---|---|"]
    for seed, s in summaries.items():
        lines.append(
            f"| {seed} | {_with_interval(s['before']['exact_match'], s['before']['ci95'])} "
            f"| {_with_interval(s['after']['exact_match'], s['after']['ci95'])} "
            f"| **{s['gain']['exact_match']:+.2f}** ({s['gain']['ci95'][0]:+.2f} to {s['gain']['ci95'][1]:+.2f}) "
            f"| {s['train_seconds']:.0f} s | {s['wall_s']:.0f} s | {s['cpu_s']:.0f} s |"
        )
    return "\n".join(lines)


def _with_interval(value: float, bounds: list[float]) -> str:
    return f"{value:.2f} ({bounds[0]:.2f} to {bounds[1]:.2f})"


if __name__ == "__main__":
    main()
