"""Which algorithm learns how much from equally many rollouts? A small model on `reverse_text`, several seeds.

All runs of a seed begin with the same weights, a short warm start on flawed demonstrations, and make equally many
updates from the same tasks: 256 rollouts each, whose tokens are counted. One learning rate for all, tuned for none.
The questions:

* `algorithms`: how much does each gain?
* `staleness`: when every token is 4 updates old (`max_staleness=4 lockstep=true`), do corrections end above none?
* `distillation`: does on-policy distillation from a better model end above GRPO?

A run that was stopped goes on, one that is finished is read: the command can be killed and given again. Runs lie in
`runs/learning`, by name, seed and a digest of their settings.

Keys of the result: `QUESTION.ARM.gain` (held-out exact match less the warm start's, mean of the seeds) with
`.gain_low` and `.gain_high` (95 %: Student's t over the seeds; for a single seed, over its tasks); `.over`,
`.over_low`, `.over_high` (the same less the gain of the question's first arm, seed by seed); `.tokens` (sampled in
training, mean of the seeds), `.train_s`, `.seed_N`; `updates`, `load_1m`, `machine`, `versions`.

    python benchmarks/learning.py                                   # an hour and a half on two idle cores
    python benchmarks/learning.py --algorithms grpo,rloo --seeds 1  # some of it
    python benchmarks/learning.py --readme                          # and writes the tables into docs/algorithms.md
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import arguments, emit, machine, provenance, run, versions
from envs.errors import unknown_name
from envs.statistics import Interval, difference

ROOT = Path(__file__).parents[1]
RUNS = Path("runs/learning")
METRIC = "exact_match"
PROMPTS, GROUP = 32, 8
ROLLOUTS = PROMPTS * GROUP
LISTED = "grpo,dr_grpo,dapo,gspo,cispo,rloo,reinforce_pp,maxrl,ppo"
TEACHER_SEED = 11
TASK = (
    "env=reverse_text", "env.unit=phrase", "env.min_length=3", "env.max_length=10", "model=tiny", "model.context=32",
    "model.rope_theta=100", "pack.row_length=64", "pack.rows_per_microbatch=8", "hardware=cpu",
    "optimizer.schedule=linear",
)  # fmt: skip
WARM = ("batch=32", "optimizer.lr=1.5e-3", "optimizer.warmup=20", "checkpoint.every=300")
TRAINED = (
    f"prompts={PROMPTS}", f"group_size={GROUP}", "sampling.max_tokens=12", "optimizer.lr=5e-4",
    "optimizer.final_lr=0.1", f"eval.metric={METRIC}", "eval.tasks=256", "checkpoint.every=10", "checkpoint.keep=1",
)  # fmt: skip
STALE = ("max_staleness=4", "lockstep=true", "inference.mismatch_limit=null")


class Question(NamedTuple):
    """What a table answers: its arms by name, as settings of `rl train`; the others are compared with the first."""

    says: str
    arms: Mapping[str, Sequence[str]]


class Arm(NamedTuple):
    """What came of an arm: `summary.json` of each seed, with `tokens`."""

    name: str
    seeds: Mapping[int, Mapping[str, Any]]

    def gains(self) -> list[float]:
        return [s["gain"][METRIC] for s in self.seeds.values()]

    def gain(self) -> Interval:
        found = difference([0.0] * len(self.seeds), self.gains())
        if found.low is not None:
            return found
        low, high = next(iter(self.seeds.values()))["gain"]["ci95"]
        return Interval(found.mean, None, low, high, 1)

    def mean(self, key: str) -> float:
        return sum(s[key] for s in self.seeds.values()) / len(self.seeds)


def questions(algorithms: Sequence[str]) -> dict[str, Question]:
    """All there are."""
    reinforce = ("algorithm=grpo", "algorithm.loss=reinforce")
    teacher = f"teacher={RUNS / folder('teacher', TEACHER_SEED, teacher_settings())}"
    listed = {each: [f"algorithm={each}"] for each in algorithms}
    return {
        "algorithms": Question("How much does each algorithm gain?", listed),
        "staleness": Question(
            "Every token is sampled by the policy of four updates before. Do corrections end above none?",
            {
                "uncorrected": [*reinforce, *STALE],
                "TIS": [*reinforce, "algorithm.correction=tis", *STALE],
                "decoupled_ppo": ["algorithm=decoupled_ppo", *STALE],
                "grpo": ["algorithm=grpo", *STALE],
            },
        ),
        "distillation": Question(
            "Does on-policy distillation from a better model of the same size end above GRPO?",
            {"grpo": ["algorithm=grpo"], "opd": ["algorithm=opd", teacher]},
        ),
    }  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--questions", default="algorithms,staleness,distillation", help="some of them, with commas")
    parser.add_argument("--algorithms", default=LISTED, help="arms of the first question, with commas")
    parser.add_argument("--seeds", default="1,2,3", help="with commas")
    parser.add_argument("--updates", type=int, default=70, help="of each run")
    parser.add_argument("--warm-updates", type=int, default=900, help="of each warm start")
    parser.add_argument("--readme", action="store_true", help="write tables and picture into docs/")
    options = parser.parse_args()
    known, load = questions(options.algorithms.split(",")), round(os.getloadavg()[0], 1)
    names, seeds = options.questions.split(","), [int(seed) for seed in options.seeds.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise unknown_name("question", unknown[0], known)
    if "distillation" in names:
        trained("teacher", TEACHER_SEED, teacher_settings(), "the teacher")
    runs = [(seed, name, arm) for seed in seeds for name in names for arm in known[name].arms]
    arms: dict[str, dict[str, dict[int, Any]]] = {name: {arm: {} for arm in known[name].arms} for name in names}
    for number, (seed, name, arm) in enumerate(runs, start=1):
        begin = warm_start(seed, options.warm_updates)
        settings = [*TASK, *TRAINED, f"model.checkpoint={begin}", f"steps={options.updates}", *known[name].arms[arm]]
        arms[name][arm][seed] = trained(arm, seed, settings, f"run {number} of {len(runs)}: {name}, {arm}, seed {seed}")
    found = {known[name].says: [Arm(arm, of) for arm, of in arms[name].items()] for name in names}
    result: dict[str, Any] = {"updates": options.updates, "load_1m": load}
    for name, measured in zip(names, found.values(), strict=True):
        result |= numbers(name, measured)
    result |= {"machine": machine(), "versions": versions("upswing", "jax", "flax", "optax")}
    text = page(found, options.updates)
    print(text, file=sys.stderr)
    if options.readme:
        publish(f"{text}\n\n![the gains with their intervals](learning.png)\n\n{provenance(result)}\n", found)
    emit("learning", result, append=options.append)


# Runs


def warm_start(seed: int, updates: int) -> Path:
    """The weights that all runs of a seed begin with."""
    return rl("sft", "warm_start", seed, [*TASK, *WARM, f"steps={updates}"], f"warm start of seed {seed}")


def teacher_settings() -> list[str]:
    """The README's experiment, of another seed."""
    return ["experiment=reverse_text", "checkpoint.every=20"]


def trained(arm: str, seed: int, settings: Sequence[str], title: str) -> dict[str, Any]:
    """Trains, unless that is done; returns `summary.json` with the `tokens` that were sampled."""
    path = ROOT / rl("train", arm, seed, settings, title)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text("utf-8").splitlines()]
    tokens = sum(row["completion_tokens"] * ROLLOUTS for row in rows if row["stage"] == "train")
    summary: dict[str, Any] = json.loads((path / "summary.json").read_text("utf-8"))
    return {**summary, "tokens": tokens}


def rl(verb: str, name: str, seed: int, settings: Sequence[str], title: str) -> Path:
    """Begins, continues or finds a run of `rl train` or `rl sft`; returns its folder, below the working copy."""
    path = RUNS / folder(name, seed, settings)
    info = ROOT / path / "run.json"
    if info.is_file() and json.loads(info.read_text("utf-8"))["status"] == "finished":
        return path
    begun = (ROOT / path / "config.yaml").is_file()
    print(f"{title}{' goes on' if begun else ''} ({path})", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "rl.cli.main", verb, *settings, f"seed={seed}", f"run_dir={path}"]
    subprocess.run([*command, f"resume={str(begun).lower()}"], cwd=ROOT, check=True, stdout=sys.stderr)
    return path


def folder(name: str, seed: int, settings: Sequence[str]) -> str:
    digest = hashlib.sha256("\n".join(settings).encode()).hexdigest()[:8]
    return f"{name}-seed{seed}-{digest}"


# What came out


def numbers(name: str, arms: Sequence[Arm]) -> dict[str, Any]:
    """The keys of a question in the result."""
    result: dict[str, Any] = {}
    for arm in arms:
        gain, over = arm.gain(), difference(arms[0].gains(), arm.gains())
        result |= {
            f"{name}.{arm.name}.{key}": value if value is None else round(value, 4)
            for key, value in {
                "gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high,
                "over": over.mean, "over_low": over.low, "over_high": over.high,
                "tokens": arm.mean("tokens"), "train_s": arm.mean("train_seconds"),
                **{f"seed_{seed}": s["gain"][METRIC] for seed, s in arm.seeds.items()},
            }.items()
        }  # fmt: skip
    return result


def page(found: Mapping[str, Sequence[Arm]], updates: int) -> str:
    """The tables as Markdown, best arm first."""
    lines = []
    for says, arms in found.items():
        first = arms[0]
        lines += [f"**{says}**", "", f"| | before | gain | each seed | over {first.name} | tokens | seconds |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for arm in sorted(arms, key=lambda arm: -arm.gain().mean):
            before = sum(s["before"][METRIC] for s in arm.seeds.values()) / len(arm.seeds)
            each = ", ".join(f"{gain:+.2f}" for gain in arm.gains())
            over = "" if arm is first else signed(difference(first.gains(), arm.gains()))
            lines.append(
                f"| {arm.name} | {before:.2f} | **{signed(arm.gain())}** | {each} | {over} "
                f"| {arm.mean('tokens') / 1e3:.0f}k | {arm.mean('train_seconds'):.0f} |"
            )
        lines += ["", verdict(arms), ""]
    seeds = ", ".join(str(seed) for seed in next(iter(found.values()))[0].seeds)
    lines.append(
        f"Held-out exact match, {updates} updates of {ROLLOUTS} rollouts, seeds {seeds}; in brackets 95 % by "
        "Student's t over the seeds (for a single seed over its tasks). Each batch is used for one step: on policy all "
        "ratios are 1, and algorithms that differ in clipping alone, as dapo and grpo, are the same. Off policy with "
        "one step per batch, decoupled PPO's proximal policy is the current one: what is left of it is its correction, "
        "TIS. Uncorrected is REINFORCE as if the old tokens were new. Seconds depend on what else the machine did."
    )
    return "\n".join(lines)


def verdict(arms: Sequence[Arm]) -> str:
    """In words, which arms differ from the first beyond chance."""
    said = {"above": [], "below": [], "not told apart from": []}  # type: dict[str, list[str]]
    for arm in arms[1:]:
        over = difference(arms[0].gains(), arm.gains())
        told = over.low is not None and over.high is not None and (over.low > 0 or over.high < 0)
        said[("above" if over.mean > 0 else "below") if told else "not told apart from"].append(arm.name)
    risen = [arm.name for arm in arms if (low := arm.gain().low) is not None and low > 0]
    text = [f"{', '.join(names)}: {how} {arms[0].name}." for how, names in said.items() if names]
    return f"{len(risen)} of {len(arms)} gained beyond chance. {' '.join(text)}"


def signed(x: Interval) -> str:
    return f"{x.mean:+.3f}" if x.low is None or x.high is None else f"{x.mean:+.3f} ({x.low:+.3f} to {x.high:+.3f})"


def publish(text: str, found: Mapping[str, Sequence[Arm]]) -> None:
    """Writes the picture, the tables, and docs/algorithms.md, which contains them."""
    picture(ROOT / "docs" / "learning.png", found)
    (ROOT / "benchmarks" / "results" / "learning.md").write_text(text, "utf-8")
    command = [sys.executable, "-m", "rl.cli.main", "algorithms", "--docs"]
    written = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (ROOT / "docs" / "algorithms.md").write_text(written, "utf-8")


def picture(path: Path, found: Mapping[str, Sequence[Arm]]) -> None:
    """A dot per arm with its interval, a small one per seed; a panel per question."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [len(arms) + 1.2 for arms in found.values()]
    figure = Figure(figsize=(8, 0.34 * sum(heights) + 0.6), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(found), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axis, (says, arms) in zip(panels, found.items(), strict=True):
        ordered = sorted(arms, key=lambda arm: arm.gain().mean)
        for y, arm in enumerate(ordered):
            gain = arm.gain()
            if gain.low is not None and gain.high is not None:
                axis.plot([gain.low, gain.high], [y, y], color="#1d5fc4", linewidth=2, solid_capstyle="round")
            axis.plot(arm.gains(), [y] * len(arm.seeds), "|", color="#9a9ea6", markersize=9)
            axis.plot([gain.mean], [y], "o", color="#1d5fc4", markersize=7, markeredgecolor="white")
        axis.set_yticks(range(len(ordered)), [arm.name for arm in ordered], fontsize=9)
        axis.set_ylim(-0.6, len(ordered) - 0.4)
        axis.axvline(0, color="#9a9ea6", linewidth=0.8)
        axis.set_title(says, fontsize=10, loc="left", color="#1b1d21")
        axis.grid(axis="x", color="#e4e4e0", linewidth=0.8)
        axis.tick_params(colors="#63676f", length=0)
        for side in axis.spines.values():
            side.set_visible(False)
    panels[-1].set_xlabel(
        "gain in held-out exact match over the warm start, 95 % intervals", fontsize=9, color="#63676f"
    )
    figure.savefig(path)


if __name__ == "__main__":
    run(main)
