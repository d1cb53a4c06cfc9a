"""What every bundled environment keeps to. New ones are found by listing."""

import json
import tomllib
from collections.abc import Sequence

import pytest
import yaml

from envs import (
    ConfigError,
    Environment,
    Message,
    Sampling,
    ScriptedClient,
    Task,
    Trajectory,
    load_environment,
    run_task,
)
from envs.errors import MissingPackageError
from envs.render import ByteRenderer
from envs.resolve import LIBRARY, list_environments
from rl.cli.conf import CONF

NAMES = sorted(path.name for path in LIBRARY.iterdir() if path.is_dir() and path.name != "__pycache__")
FEW = 8


def load(name: str, **arguments: object) -> Environment:
    """Those whose packages are not among the locked ones are tested by `make test-environments`."""
    try:
        return load_environment(name, **arguments)
    except MissingPackageError as error:
        pytest.skip(f"NOT TESTED: {error}")


@pytest.fixture(scope="module", params=NAMES)
def environment(request: pytest.FixtureRequest) -> Environment:
    return load(request.param)


def tasks(environment: Environment, split: str = "eval") -> list[Task]:
    return list(environment.tasks.split(split).head(FEW))


async def say(environment: Environment, task: Task, words: Sequence[str | Message]) -> Trajectory:
    """A rollout in which the model says one thing after the other, the last one again and again."""
    rest = iter(words)
    client = ScriptedClient(lambda messages: next(rest, words[-1]))
    try:
        trajectory = await run_task(environment, task, client, sampling=Sampling(seed=0))
    except ConfigError as error:
        if "bubblewrap" not in str(error):
            raise
        pytest.skip(f"NOT TESTED: {error}")
    assert trajectory.failure is None, trajectory.failure
    assert trajectory.reward is not None and trajectory.stop
    return trajectory


def test_there_are_some_and_each_has_a_config() -> None:
    assert {"reverse_text", "wordle"} <= set(NAMES) <= {info.name for info in list_environments()}
    assert set(NAMES) <= {path.stem for path in (CONF / "env").glob("*.yaml")}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_project_of_its_own_with_words_and_tests(name: str) -> None:
    folder = LIBRARY / name
    assert (folder / "README.md").read_text().startswith("# ")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["version"] and project["description"] and project["requires-python"]
    own = not (folder / f"upswing_{name}").is_dir()
    module = name if own else f"upswing_{name}"
    assert project["entry-points"]["upswing.environments"] == {name: f"{module}:load_environment"}
    assert list((folder / "tests").glob("test_*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_its_config_loads_it(name: str) -> None:
    settings = yaml.safe_load((CONF / "env" / f"{name}.yaml").read_text())
    assert settings.pop("name") == name
    assert len(load(name, **settings).tasks.split("train")) > 0


def test_splits_are_apart_and_the_same_every_time(environment: Environment) -> None:
    again = load_environment(environment.name).tasks
    assert again.splits == environment.tasks.splits and again.splits[:2] == ("train", "eval")
    seen: set[str] = set()
    problems: set[str] = set()
    for split in again.splits:
        listed = list(environment.tasks.split(split))
        assert listed == list(again.split(split)) and len(listed) >= 64
        ids = {task.id for task in listed}
        assert len(ids) == len(listed) and not ids & seen
        seen |= ids
        found = {json.dumps([task.to_dict()["prompt"], task.answer]) for task in listed}
        assert found.isdisjoint(problems), "no problem is in two splits"
        problems |= found


def test_tasks_are_json_and_tokens(environment: Environment) -> None:
    for task in tasks(environment):
        assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
        assert all(0 <= i < ByteRenderer.vocab_size for i in ByteRenderer().prompt(task.prompt))


async def test_what_an_expert_shows_scores_high_and_saying_nothing_low(environment: Environment) -> None:
    async def shown(task: Task, sample: int) -> float:
        messages: tuple[Message, ...] = environment.demonstration(task, sample)
        assert messages == environment.demonstration(task, sample)
        trajectory = await say(environment, task, [m for m in messages if m["role"] == "assistant"])
        return trajectory.reward or 0.0

    async def best_of(task: Task) -> float:
        best = 0.0
        for sample in range(8):  # not every demonstrator has to be right; one of eight is
            best = max(best, await shown(task, sample))
            if best > 0.99:
                break
        return best

    best = [await best_of(task) for task in tasks(environment)]
    silent = [(await say(environment, task, [""])).reward or 0.0 for task in tasks(environment)]
    assert sum(best) / FEW > 0.9 and max(silent) < 0.1


async def test_a_rollout_survives_json_to_the_last_bit(environment: Environment) -> None:
    for task in tasks(environment, "train")[:4]:
        trajectory = await say(environment, task, ["?", str(task.answer)])
        line = trajectory.to_json()
        assert "\n" not in line
        again = Trajectory.from_json(line)
        assert again == trajectory and again.to_json() == line
        assert set(trajectory.rewards) | set(trajectory.metrics) == set(environment.rubric.weights)
