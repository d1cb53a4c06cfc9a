"""The stages of an experiment, each able to go on where a killed run stopped."""

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from envs.clients.base import Client
from envs.environment import Environment
from envs.errors import ConfigError
from envs.evaluation import Evaluation
from envs.seeds import derive_seed
from envs.types import Sampling
from rl.algorithms import Algorithm, supervised
from rl.algorithms.components import COMPONENTS, Component, with_components
from rl.checkpoint import Checkpoints
from rl.cli.assemble import Assembly, Gathering
from rl.cli.build import Policy
from rl.cli.model import as_config_error
from rl.config import CheckpointConfig, EvalConfig, PackConfig
from rl.data.pack import Segment, pack
from rl.inference.engine import Engine
from rl.inference.teacher import ServedTeacher
from rl.metrics import CompileCounter
from rl.models.base import Params
from rl.models.lora import dense, join, split
from rl.parallel.mesh import replicated
from rl.progress import Progress
from rl.rollout.client import EngineClient
from rl.rollout.collect import Collector
from rl.rollout.demonstrations import Demonstrations
from rl.rollout.held_out import held_out
from rl.rollout.pairs import Pair, pair_segments
from rl.rollout.schedule import Schedule
from rl.rollout.select import LastRewards, Selection, every
from rl.rollout.steps import Steps
from rl.run_dir import RunDir
from rl.trainer.credit import Groups
from rl.trainer.critic import CriticState, init_critic
from rl.trainer.loop import of_all_sampled, reinforce
from rl.trainer.minibatches import make_measure, make_updates
from rl.trainer.optimizer import Optimizer
from rl.trainer.reference import Look, make_look, make_taught, make_with_reference
from rl.trainer.reward import make_reward_score
from rl.trainer.sft import supervise
from rl.trainer.state import TrainState, init_state, parameter_count
from rl.trainer.step import make_apply
from rl.trainer.update import Score, make_score
from rl.types import Batch


@dataclass
class Stages:
    """What all stages of a run share."""

    run: RunDir
    environment: Environment
    policy: Policy
    progress: Progress
    checkpoint: CheckpointConfig
    pack: PackConfig
    seed: int

    def __post_init__(self) -> None:
        name = {"name": self.environment.name, "version": self.environment.version}
        shapes = jax.eval_shape(self.policy.model.init, jax.random.key(0))
        trained, _ = split(self.policy.params)
        self.run.describe(environment=name, parameters=parameter_count(shapes), trained=parameter_count(trained))
        self._score = make_score(self.policy.model, remat=self.policy.remat)
        self._compiled = CompileCounter()

    async def prefer(
        self,
        params: Params,
        algorithm: Algorithm,
        optimizer: Optimizer,
        steps: int,
        batch: int,
        pairs: Sequence[Pair],
        held_out: Sequence[Pair],
    ) -> dict[str, float]:
        """Learns to prefer the better answers of pairs. The reference is `params`; an algorithm with a critic makes
        them a reward model.

        Returns:
            The means of what is observed over the pairs held out: `loss`, `margin`, `accuracy`; empty without any.
        """
        schedule = Schedule(pairs, batch, derive_seed(self.seed, "pairs"))
        trained, frozen = split(params)
        rows, judging = self.pack.rows_per_microbatch, algorithm.critic is not None
        score = make_reward_score(self.policy.model, remat=self.policy.remat) if judging else self._score
        reference = None
        if algorithm.needs_reference:
            first = join(jax.tree.map(jnp.copy, trained), frozen)
            reference = make_with_reference(score, first, rows, 1.0)

        def packed(chosen: Sequence[Pair]) -> Batch:
            found = self._packed(pair_segments(chosen, last=judging), min_rows=2 * batch)
            return found if reference is None else reference(found)

        async def batch_of(step: int) -> tuple[Batch, Iterable[str]]:
            chosen = schedule.tasks(step)
            return packed(chosen), (pair.id for pair in chosen)

        state = await self._supervised(
            "preferences", trained, frozen, algorithm, optimizer, steps, batch_of, score=score
        )
        measure = make_measure(score, algorithm, rows, {**algorithm.hyper, "temperature": 1.0}, frozen)
        sums: dict[str, float] = {}
        for start in range(0, len(held_out), batch):
            few = held_out[start : start + batch]
            for name, value in measure(state, packed(few)).items():
                sums[name] = sums.get(name, 0.0) + len(few) * value
        return {name.removeprefix("pairs/"): total / len(held_out) for name, total in sums.items()}

    async def supervise(
        self, params: Params, shown: Environment, optimizer: Optimizer, steps: int, batch: int, demonstrations: int
    ) -> Params:
        """Learns from the demonstrations of `shown`, the run's own environment or one like it; returns the weights."""
        tasks = shown.training_tasks().head(demonstrations)
        seed = derive_seed(self.seed, "warm_start")
        schedule = Schedule(tasks, batch, seed)

        expert = Demonstrations(shown, schedule, seed)

        async def batch_of(step: int) -> tuple[Batch, Iterable[str]]:
            parts, ids = await expert.of(step, self.policy.renderer)
            return self._packed(parts, min_rows=batch), ids

        trained, frozen = split(params)
        state = await self._supervised("warm start", trained, frozen, supervised(), optimizer, steps, batch_of)
        return join(state.params, frozen)

    async def _supervised(
        self,
        title: str,
        trained: Params,
        frozen: Params | None,
        algorithm: Algorithm,
        optimizer: Optimizer,
        steps: int,
        batch_of: Callable[[int], Awaitable[tuple[Batch, Iterable[str]]]],
        score: Score | None = None,
    ) -> TrainState:
        """Makes the updates of a stage whose tokens are given; `score` is that of the policy unless it is another."""
        name, rows = "warm_start", self.pack.rows_per_microbatch
        update = make_updates(score or self._score, algorithm, optimizer, rows, self.policy.constrain)
        state, checkpoints = self._begin(name, trained, optimizer, self._critic(algorithm, trained))
        stage = self.progress.stage(title, total=steps, unit="updates", start=int(state.step))

        def on_step(step: int, metrics: dict[str, float]) -> None:
            self.run.log(name, step, metrics)
            stage.update(step, metrics)

        return await supervise(
            state,
            steps=steps,
            batch_of=batch_of,
            apply=make_apply(update, {**optimizer.hyper, **algorithm.hyper, "temperature": 1.0}, frozen),
            checkpoints=checkpoints,
            on_step=on_step,
        )

    async def evaluate(self, name: str, client: Client, config: EvalConfig, max_tokens: int) -> Evaluation:
        """Runs the held-out tasks; the same seeds before and after."""
        tasks = self.environment.tasks.split(config.split).head(config.tasks)
        stage = self.progress.stage(f"evaluate {name}", total=len(tasks) * config.samples, unit="rollouts")
        return await held_out(
            self.environment,
            client,
            list(tasks),
            samples=config.samples,
            sampling=Sampling(config.temperature, max_tokens=max_tokens, seed=derive_seed(self.seed, "eval")),
            journal=self.run.path / "evals" / f"{name}.jsonl",
            on_progress=stage.update,
        )

    async def reinforce(
        self,
        params: Params,
        engine: Engine,
        algorithm: Algorithm,
        optimizer: Optimizer,
        *,
        teacher: Policy | ServedTeacher | None,
        mix: Sequence[Demonstrations],
        selection: Selection,
        steps: int,
        prompts: int,
        group_size: int,
        minibatches: int,
        epochs: int,
        sampling: Sampling,
        max_staleness: int,
        lockstep: bool,
        step_timeout: float | None,
        mismatch_limit: float | None,
    ) -> None:
        """Trains with the algorithm, from `params` or from the newest checkpoint; leaves `engine` with the result.

        The reference that an algorithm may need is `teacher`, or without one the policy in its first state. One that is
        served is asked about the rollouts of a step as soon as these are there, while others may still train. Every
        update learns from the demonstrations of `mix`, too.
        """
        if algorithm.top > (entries := self.policy.model.config.vocab_size):
            raise ConfigError(
                f"algorithm.top={algorithm.top}, but the model has {entries} tokens; expected at most those"
            )
        others = (name for name in COMPONENTS if any(each.components.get(name) for each in mix))
        components: list[Component] = ["rl", *others]
        if mix:
            algorithm = with_components(algorithm, components)
        most = prompts * group_size + sum(each.schedule.size for each in mix)
        trained, frozen = split(params)
        served = teacher if isinstance(teacher, ServedTeacher) and algorithm.needs_reference else None
        needs_own = algorithm.needs_reference and served is None
        judge = teacher if isinstance(teacher, Policy) else None

        schedule = Schedule(self.environment.training_tasks(), prompts, derive_seed(self.seed, "train"))
        client, greedy = EngineClient(engine, self.policy.renderer), "greedy" in algorithm.asks
        collector = Collector(self.environment, client, group_size, sampling, deadline=step_timeout, greedy=greedy)
        critic = self._critic(algorithm, trained)
        keys = () if algorithm.keep is None else (self.environment.name,)
        averaged = algorithm.privilege is not None and algorithm.privilege.weights == "average"
        state, checkpoints = self._begin("train", trained, optimizer, critic, keys, averaged=averaged)
        last = LastRewards(self.run.path / "tasks.jsonl", int(state.step)) if selection.pool else None
        sampled = Steps(self.run.path, self.seed, schedule, collector, selection, prompts, max_staleness, last)
        gathering = Gathering(sampled, mix, self.policy.renderer, served)
        assemble = Assembly(
            algorithm=algorithm,
            environment=self.environment,
            renderer=self.policy.renderer,
            gathering=gathering,
            selection=selection,
            components=components if mix else (),
            pack=partial(self._packed, min_rows=most, cut=minibatches),
            row_length=self.pack.row_length,
            reference=self._reference(algorithm, judge, trained, frozen, sampling.temperature) if needs_own else None,
            look=self._look(algorithm, sampling.temperature, frozen),
            taught=self._taught(algorithm, trained, frozen, most, sampling.temperature),
        )
        rows = self.pack.rows_per_microbatch
        update = make_updates(
            self._score, algorithm, optimizer, rows, self.policy.constrain, minibatches=minibatches, epochs=epochs
        )
        hyper = {**optimizer.hyper, **algorithm.hyper, "temperature": sampling.temperature}
        stage = self.progress.stage("train", total=steps, unit="updates", start=int(state.step))
        clock = time.perf_counter()

        def on_step(step: int, groups: Groups, metrics: dict[str, float]) -> None:
            nonlocal clock
            selected = sampled.seal(step - 1)
            if sampled.selection.gate is not every:
                metrics = of_all_sampled(metrics, groups, selected.sampled, step - 1) | selected.metrics()
            now = time.perf_counter()
            metrics |= {"seconds": now - clock, "compilations": float(self._compiled.count)}
            clock = now
            self.run.log("train", step, metrics)
            stage.update(step, metrics)

        async def publish(trained: Params, version: int) -> None:
            await engine.load_weights(join(trained, frozen), version)

        await reinforce(
            state,
            steps=steps,
            collect=gathering.collect,
            assemble=assemble,
            apply=make_apply(update, hyper, frozen),
            publish=publish,
            checkpoints=checkpoints,
            on_step=on_step,
            max_staleness=max_staleness,
            lockstep=lockstep,
            mismatch_limit=mismatch_limit,
        )

    def _reference(
        self, algorithm: Algorithm, teacher: Policy | None, trained: Params, frozen: Params | None, temperature: float
    ) -> Callable[[Batch], Batch]:
        """Fills in what `teacher` says about a batch, or without one the policy as it is now."""
        rows = self.pack.rows_per_microbatch
        if teacher is not None:
            judge = make_score(teacher.model, top=algorithm.top)
            return make_with_reference(judge, dense(teacher.params), rows, temperature)
        first = jax.tree.map(jnp.copy, trained)  # the update uses up what it is given
        return make_with_reference(self._score, join(first, frozen), rows, temperature)

    def _taught(
        self, algorithm: Algorithm, trained: Params, frozen: Params | None, min_rows: int, temperature: float
    ) -> Callable[[TrainState, Sequence[Segment], Batch], Batch] | None:
        """Fills in what a policy says that teaches itself, with its weights of now, of a while ago, or of the start."""
        if algorithm.privilege is None:
            return None
        own = jax.tree.map(jnp.copy, trained) if algorithm.privilege.weights == "initial" else None
        judge = make_score(self.policy.model, top=algorithm.top)
        taught = make_taught(judge, self.pack.row_length, self.pack.rows_per_microbatch, min_rows, temperature)

        def of(state: TrainState, parts: Sequence[Segment], batch: Batch) -> Batch:
            teaching = own if own is not None else state.params if state.average is None else state.average
            return taught(join(teaching, frozen), parts, batch)

        return of

    def _critic(self, algorithm: Algorithm, trained: Params) -> CriticState | None:
        """The critic that an algorithm begins with, if it has one."""
        width, place = self.policy.model.config.width, partial(replicated, self.policy.mesh)
        return None if algorithm.critic is None else init_critic(algorithm.critic.kind, width, trained, place)

    def _look(self, algorithm: Algorithm, temperature: float, frozen: Params | None) -> Look:
        """What credit asks to be told about tokens, of the policy and the critic."""
        names = algorithm.asks & {"values", "logprobs", "squared_probs"}
        if not names:
            return lambda state, batch: {}
        score = make_score(self.policy.model, squares="squared_probs" in names)
        return make_look(score, names, self.pack.rows_per_microbatch, temperature, frozen)

    def _begin(
        self,
        stage: str,
        params: Params,
        optimizer: Optimizer,
        critic: CriticState | None = None,
        keys: Iterable[str] = (),
        *,
        averaged: bool = False,
    ) -> tuple[TrainState, Checkpoints]:
        """The newest checkpoint of a stage, or its first state; what was logged after it is about to be made again."""
        where = self.run.path / "checkpoints" / stage
        checkpoints = Checkpoints(where, every=self.checkpoint.every, keep=self.checkpoint.keep)
        # A copy: the first update uses up the state, and these weights may still be needed.
        with as_config_error("optimizer"):
            first = init_state(jax.tree.map(jnp.copy, params), optimizer, critic, keys, averaged=averaged)
        state = checkpoints.load(first) or first
        self.run.forget(stage, after=int(state.step))
        return state, checkpoints

    def _packed(self, parts: list[Segment], min_rows: int, cut: int = 1) -> Batch:
        return pack(parts, self.pack.row_length, self.pack.rows_per_microbatch * cut, min_rows)
