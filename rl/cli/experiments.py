"""What `rl train`, `rl sft` and `rl eval` do: build the values, open a run directory, go through the stages."""

import asyncio
import datetime
import signal
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from envs.environment import Environment
from envs.errors import ConfigError, UpswingError
from envs.evaluation import Evaluation, paired_gain
from envs.price import Price
from envs.render.subword import SubwordRenderer, keep_vocabulary
from envs.statistics import wilson
from envs.types import Sampling
from rl.algorithms import Algorithm
from rl.cli.build import (
    Policy,
    make_algorithm,
    make_environment,
    make_mix,
    make_optimizer,
    make_policy,
    make_preference,
    make_selection,
    make_teacher,
    make_vocabulary,
    make_warm_environment,
    make_warm_optimizer,
    open_client,
)
from rl.cli.engine import check_routing, engine_config, open_engine
from rl.cli.stages import Stages
from rl.config import ClientConfig, EvalRunConfig, SftConfig, TrainConfig
from rl.inference.teacher import ServedTeacher
from rl.progress import Progress
from rl.report import summary_table, write_report
from rl.report.tables import evaluation_table, tokens_line
from rl.report.text import count
from rl.rollout.client import EngineClient
from rl.rollout.pairs import held_apart, read_pairs
from rl.run_dir import RunDir


def train(config: TrainConfig, composed: str) -> Path:
    """Warm start, evaluate, reinforce, evaluate, report.

    Args:
        config: everything, typed.
        composed: the same as YAML, for the run directory.

    Returns:
        The run directory.
    """
    inference = engine_config(config.inference)
    environment = make_environment(config.env)
    environment.training_tasks()  # refuses what is for evaluation only, before anything is made
    warm = config.warm_start
    shown = make_warm_environment(config.env, warm.env) if warm.env else environment
    shown.training_tasks()
    algorithm = make_algorithm(config.algorithm)
    policy = _policy(config, environment)
    check_routing(inference, policy)
    optimizer = make_optimizer(config.optimizer, config.steps, policy.model)
    warm_optimizer = make_warm_optimizer(warm, policy.model)
    _check_sampling(config)
    selection = make_selection(config.selection)
    mix = make_mix(config.mix, config.seed)
    teacher = make_teacher(config.teacher, policy, config.hardware)
    if algorithm.needs_teacher and teacher is None:
        raise ConfigError(
            f"algorithm={config.algorithm['name']} learns from a teacher, and there is none; name one "
            "with teacher=runs/NAME, or a folder as for model.source"
        )
    name = f"{environment.name}-{config.algorithm['name']}-seed{config.seed}-{_now()}"
    if isinstance(teacher, ServedTeacher):
        _check_served(algorithm, config.sampling.temperature)
    run = _open(config.run_dir, name, composed, config.resume, policy)
    title = f"{environment.name} · {config.algorithm['name']} · seed {config.seed}"

    async def stages(progress: Progress) -> None:
        if isinstance(teacher, ServedTeacher) and not await teacher.check(policy.renderer):
            progress.note(f"teacher={teacher.url} has no tokenizer: that it is the policy's could not be checked")
        stage = Stages(run, environment, policy, progress, config.checkpoint, config.pack, config.seed)
        params = policy.params
        if warm.steps:
            params = await stage.supervise(
                params,
                shown,
                warm_optimizer,
                warm.steps,
                warm.batch,
                warm.demonstrations,
            )
        policy_now = policy._replace(params=params)
        async with open_engine(inference, policy_now, run.path / "sglang", progress.note, exact=True) as engine:
            client = EngineClient(engine, policy.renderer)
            before = await stage.evaluate("before", client, config.eval, config.sampling.max_tokens)
            await stage.reinforce(
                params,
                engine,
                algorithm,
                optimizer,
                teacher=teacher,
                mix=mix,
                selection=selection,
                steps=config.steps,
                prompts=config.prompts,
                group_size=config.group_size,
                minibatches=config.minibatches,
                epochs=config.epochs,
                sampling=Sampling(temperature=config.sampling.temperature, max_tokens=config.sampling.max_tokens),
                max_staleness=config.max_staleness,
                lockstep=config.lockstep,
                step_timeout=config.step_timeout,
                mismatch_limit=inference.mismatch_limit,
            )
            after = await stage.evaluate("after", client, config.eval, config.sampling.max_tokens)
        run.summarise(_summary(config, run, before, after))

    _recorded(run, title, config.eval.metric, stages)
    _show(run)
    return run.path


def sft(config: SftConfig, composed: str) -> Path:
    """Supervised training on the environment's demonstrations, or on pairs of answers.

    Returns:
        The run directory; `rl train model.checkpoint=DIRECTORY` begins from its weights.
    """
    environment = make_environment(config.env)
    if config.pairs is None:
        environment.training_tasks()  # refuses what is for evaluation only, before anything is made
    policy = _policy(config, environment)
    optimizer = make_optimizer(config.optimizer, config.steps, policy.model)
    if bool(config.preference) != (config.pairs is not None):
        raise ConfigError(
            "preferences and pairs come together: preference=dpo pairs=FILE.jsonl (or a run's directory); found "
            f"preference={config.preference.get('name')}, pairs={config.pairs}"
        )
    algorithm = make_preference(config.preference) if config.preference else None
    pairs = [] if config.pairs is None else read_pairs(Path(config.pairs), policy.renderer)
    learned, apart = held_apart(pairs, config.held_out, config.seed)
    run = _open(config.run_dir, f"{environment.name}-sft-seed{config.seed}-{_now()}", composed, config.resume, policy)

    async def stages(progress: Progress) -> None:
        stage = Stages(run, environment, policy, progress, config.checkpoint, config.pack, config.seed)
        if algorithm is not None:
            found = await stage.prefer(policy.params, algorithm, optimizer, config.steps, config.batch, learned, apart)
            if apart:
                bounds = wilson(found["accuracy"], len(apart))
                summary = {"held_out": {"pairs": len(apart), **found, "accuracy_ci95": bounds}}
                run.summarise({**summary, "steps": config.steps, "seed": config.seed, "run_dir": str(run.path)})
        else:
            await stage.supervise(
                policy.params, environment, optimizer, config.steps, config.batch, config.demonstrations
            )

    _recorded(run, f"{environment.name} · sft · seed {config.seed}", None, stages)
    if apart:
        measured = run.summary()["held_out"]
        low, high = measured["accuracy_ci95"]
        print(f"held out: accuracy {measured['accuracy']:.3f} ({low:.3f} to {high:.3f}) of {count(len(apart), 'pair')}")
    if algorithm is not None and algorithm.critic is not None:
        print(f"weights: {run.path}\nnext:    rl.cli.reward.load_reward_model('{run.path}') is a reward function")
    else:
        print(f"weights: {run.path}\nnext:    rl eval env={environment.name} run={run.path}")
    return run.path


class Evaluated(NamedTuple):
    """What came of an evaluation: the run's directory, who answered where, and `Evaluation.summary()`."""

    path: Path
    environment: str
    model: str
    summary: dict[str, Any]


def evaluate(config: EvalRunConfig, composed: str) -> Path:
    """One environment, one model, one table.

    Returns:
        The run directory, with every rollout in `evals/eval.jsonl`.

    Raises:
        UpswingError: when no rollout was scored, or the mean reward is below `fail_under`.
    """
    done = evaluated(config, composed)
    Console().print(evaluation_table(done.summary, f"{done.environment} [{config.split}] · {done.model}"))
    print(f"tokens:   {tokens_line(done.summary)}\nrollouts: {done.path / 'evals' / 'eval.jsonl'}")
    if problem := shortfall(config, done.summary):
        raise UpswingError(problem)
    return done.path


def shortfall(config: EvalRunConfig, summary: Mapping[str, Any]) -> str | None:
    """Why an evaluation counts as failed, if it does."""
    if not summary["scored"]:
        return f"none of the {summary['rollouts']} rollouts was scored; failures: {summary['failures']}"
    mean = summary["reward"]["mean"]
    if config.fail_under is not None and mean < config.fail_under:
        return f"the mean reward {mean:.3f} is under {config.fail_under:g}"
    return None


def evaluated(config: EvalRunConfig, composed: str) -> Evaluated:
    """Evaluates, and leaves what came of it in a run directory."""
    environment = make_environment(config.env)
    tasks = environment.tasks.split(config.split)
    chosen = list(tasks if config.tasks is None else tasks.head(config.tasks))
    price = _price(config.client)
    sampling = Sampling(
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        top_k=config.sampling.top_k,
        max_tokens=config.sampling.max_tokens,
        seed=config.seed,
    )
    found: list[tuple[str, Evaluation]] = []
    run = _open(config.run_dir, f"{environment.name}-eval-{_now()}", composed, config.resume)

    async def stages(progress: Progress) -> None:
        from rl.rollout.held_out import held_out

        async with open_client(config, run.path / "sglang", progress.note) as (client, answering):
            run.describe(environment={"name": environment.name, "version": environment.version}, client=answering)
            stage = progress.stage("evaluate", total=len(chosen) * config.samples, unit="rollouts")
            evaluation = await held_out(
                environment,
                client,
                chosen,
                samples=config.samples,
                sampling=sampling,
                journal=run.path / "evals" / "eval.jsonl",
                concurrency=config.client.concurrency,
                retries=config.retries,
                on_progress=stage.update,
            )
            run.summarise({"model": answering, **evaluation.summary(config.success, price)})
            found.append((answering, evaluation))

    _recorded(run, f"{environment.name} · eval", None, stages)
    answering, evaluation = found[0]
    return Evaluated(run.path, environment.name, answering, evaluation.summary(config.success, price))


def _price(client: ClientConfig) -> Price | None:
    if (client.prompt_price is None) != (client.completion_price is None):
        raise ConfigError("client.prompt_price and client.completion_price come together; set both, or neither")
    if client.prompt_price is None or client.completion_price is None:
        return None
    return Price(client.prompt_price, client.completion_price)


def _recorded(run: RunDir, title: str, metric: str | None, stages: Any) -> None:
    """Runs the stages under a progress display; however they end, `run.json` says so."""

    async def main() -> None:
        with _terminated_as_interrupted(), Progress(title=title, metric=metric) as progress:
            coroutine: Coroutine[Any, Any, None] = stages(progress)
            await coroutine

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        run.status("interrupted")
        print(f"\nstopped; nothing is lost. Continue with the same command and resume=true (run: {run.path})")
        raise
    except BaseException as error:
        run.status("failed", f"{type(error).__name__}: {error}")
        raise
    else:
        run.status("finished")
    finally:
        run.close()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, which clusters send before they take a machine away, ends a task as Ctrl-C does: with a checkpoint.

    Also where Ctrl-C is ignored, as in the background of a script: hence no signal is raised from a signal.
    """
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield
        return
    loop, task, terminated = asyncio.get_running_loop(), asyncio.current_task(), False
    assert task is not None

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        yield
    except asyncio.CancelledError:
        if terminated:
            raise KeyboardInterrupt from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def _summary(config: TrainConfig, run: RunDir, before: Evaluation, after: Evaluation) -> dict[str, Any]:
    metric = config.eval.metric

    def side(evaluation: Evaluation) -> dict[str, Any]:
        lead, reward = evaluation.interval(metric), evaluation.interval("reward")
        bounds = {metric: lead.mean, "ci95": [lead.low, lead.high]}
        rewards = {"reward": reward.mean, "reward_ci95": [reward.low, reward.high]}
        return {**rewards, **bounds, "tasks": len(evaluation.values(metric))}

    lead, reward = paired_gain(before, after, metric), paired_gain(before, after, "reward")
    return {
        "metric": metric,
        "before": side(before),
        "after": side(after),
        "gain": {
            "reward": reward.mean,
            "reward_ci95": [reward.low, reward.high],
            metric: lead.mean,
            "ci95": [lead.low, lead.high],
        },
        "train_seconds": run.seconds("train"),
        "warm_start_seconds": run.seconds("warm_start"),
        "steps": config.steps,
        "seed": config.seed,
        "run_dir": str(run.path),
    }


def _show(run: RunDir) -> None:
    paths = write_report(run.path)
    console = Console()
    console.print(summary_table(run.summary()))
    console.print(f"run:    {run.path}\nreport: {paths.html}\ncurve:  {paths.png}", soft_wrap=True, highlight=False)


def _policy(config: TrainConfig | SftConfig, environment: Environment) -> Policy:
    vocabulary = make_vocabulary(config.model, environment)
    return make_policy(config.model, config.hardware, config.seed, vocabulary)


def _open(run_dir: str | None, name: str, composed: str, resume: bool, policy: Policy | None = None) -> RunDir:
    """The run's directory, with the vocabulary of its weights."""
    run = RunDir.open(None if run_dir is None else Path(run_dir), name, composed, resume=resume)
    if policy is not None and isinstance(policy.renderer, SubwordRenderer):
        keep_vocabulary(policy.renderer.merges, run.path)
    return run


def _check_served(algorithm: Algorithm, temperature: float) -> None:
    """What a teacher behind a server cannot be asked."""
    if temperature != 1.0:
        raise ConfigError(
            f"sampling.temperature is {temperature:g}, and a teacher behind a server tells what it thinks at "
            "temperature 1; set sampling.temperature=1, or name a run or a folder as teacher"
        )
    if algorithm.top:
        raise ConfigError(
            f"algorithm.top={algorithm.top} of the teacher's likeliest tokens are asked for, and a teacher behind a "
            "server is asked about the sampled ones alone; take algorithm=opd, or name a run or a folder as teacher"
        )


def _check_sampling(config: TrainConfig) -> None:
    for key, value in (("temperature", config.sampling.temperature), ("max_tokens", config.sampling.max_tokens)):
        if not value > 0:
            raise ConfigError(f"sampling.{key} is {value}; training needs a positive one")
    for key in ("steps", "group_size", "prompts", "minibatches", "epochs"):
        if getattr(config, key) < 1:
            raise ConfigError(f"{key} is {getattr(config, key)}; expected at least 1")
    if config.max_staleness < 0:
        raise ConfigError(f"max_staleness is {config.max_staleness}; expected 0 (synchronous) or more")
    if config.step_timeout is not None and not config.step_timeout > 0:
        raise ConfigError(f"step_timeout is {config.step_timeout}; expected a positive number of seconds, or null")


def _now() -> str:
    return datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
