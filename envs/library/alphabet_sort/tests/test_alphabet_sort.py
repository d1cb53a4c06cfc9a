"""Tasks, turns and rewards of `alphabet_sort`, through what its users call."""

import pytest

from envs import ConfigError, ScriptedClient, Task, Trajectory, load_environment, run_task

ARRIVING = [["Zoe Adams", "Bob Young"], ["Cid Moss"]]
TASK = Task.ask(
    "t",
    "Sort!",
    [["Zoe Adams", "Bob Young"], ["Zoe Adams", "Cid Moss // new", "Bob Young"]],
    arriving=ARRIVING,
    key="last",
    power=4.0,
)


async def say(*replies: str, task: Task = TASK) -> Trajectory:
    trajectory = await run_task(
        load_environment("alphabet_sort", train_tasks=1, eval_tasks=1), task, ScriptedClient(replies)
    )
    assert trajectory.failure is None, trajectory.failure
    return trajectory


def tagged(*lines: str) -> str:
    return "Here:\n<sorted>\n" + "\n".join(lines) + "\n</sorted>"


@pytest.mark.parametrize(
    ("first", "second", "reward", "right"),
    [
        (tagged("Zoe Adams", "Bob Young"), tagged("Zoe Adams", "Cid Moss // new", "Bob Young"), 1.0, 1.0),
        (tagged("Bob Young", "Zoe Adams"), tagged("Zoe Adams", "Cid Moss // new", "Bob Young"), (0.5**4 + 1) / 2, 0.5),
        (tagged("Zoe Adams", "Bob Young"), tagged("Zoe Adams", "Cid Moss", "Bob Young"), (1 + (2 / 3) ** 4) / 2, 0.5),
        (tagged("Zoe Adams", "Bob Young", "Bob Young"), "", (2 / 3) ** 4 / 2, 0.0),
        ("Zoe Adams\nBob Young", "", 0.0, 0.0),  # no tag
    ],
)
async def test_every_turn_counts(first: str, second: str, reward: float, right: float) -> None:
    trajectory = await say(first, second)
    assert trajectory.reward == pytest.approx(reward, abs=1e-12)
    assert trajectory.metrics == {"turns_right": right, "all_right": float(right == 1)}
    assert trajectory.stop in ("completed", "max_turns") and len(trajectory.turns) == 2


async def test_the_next_names_arrive_whatever_was_said() -> None:
    trajectory = await say("no", "no")
    assert "Cid Moss" in str(trajectory.messages[2]["content"])
    assert [message["role"] for message in trajectory.messages] == ["user", "assistant", "user", "assistant"]


def test_tasks_are_sound_and_share_no_name() -> None:
    tasks = load_environment("alphabet_sort", train_tasks=200, eval_tasks=100).tasks
    names: dict[str, set[str]] = {}
    for split in ("train", "eval"):
        names[split] = {
            part for t in tasks.split(split) for turn in t.info["arriving"] for name in turn for part in name.split()
        }
        assert {len(task.answer) for task in tasks.split(split)} == {1, 2, 3}
    assert names["train"].isdisjoint(names["eval"])
    task = next(task for task in tasks if task.info["key"] == "first" and len(task.answer) == 3)
    firsts = [line.split()[0] for line in task.answer[2]]
    assert firsts == sorted(firsts) and len(set(firsts)) == len(firsts)
    assert sum(line.endswith(" // new") for line in task.answer[2]) == len(task.info["arriving"][2])
    assert not any(line.endswith(" // new") for line in task.answer[0])


def test_the_seed_decides_the_tasks() -> None:
    def prompts(seed: int) -> list[str]:
        return [
            str(t.prompt[-1]["content"])
            for t in load_environment("alphabet_sort", train_tasks=5, seed=seed).tasks.split("train")
        ]

    assert prompts(0) == prompts(0) != prompts(1)


async def test_names_can_be_invented_too_many_to_be_known_by_heart() -> None:
    environment = load_environment("alphabet_sort", train_tasks=400, eval_tasks=200, names="invented")
    parts: dict[str, set[str]] = {"train": set(), "eval": set()}
    for task in environment.tasks:
        names = [name.split() for turn in task.info["arriving"] for name in turn]
        assert len({first for first, _ in names}) == len({last for _, last in names}) == len(names)
        parts["train" if task.id.startswith("train") else "eval"] |= {part for name in names for part in name}
    assert parts["train"].isdisjoint(parts["eval"]) and min(map(len, parts.values())) > 1000
    assert all(part.isalpha() and part.istitle() for part in parts["train"] | parts["eval"])
    real = load_environment("alphabet_sort", train_tasks=200, eval_tasks=100).tasks
    assert not parts["train"] & {part for task in real for name in task.answer[0] for part in name.split()}
    for task in environment.tasks.split("eval").head(20):
        shown = [str(m["content"]) for m in environment.demonstration(task, 0) if m["role"] == "assistant"]
        assert (await say(*shown, task=task)).reward == 1.0


@pytest.mark.parametrize(("clean", "low", "high"), [(0.0, 0.1, 0.3), (0.4, 0.42, 0.62), (1.0, 1.0, 1.0)])
async def test_demonstrated_lists_are_sorted_or_in_any_order(clean: float, low: float, high: float) -> None:
    environment = load_environment("alphabet_sort", max_names=3, clean_demonstrations=clean)
    lists, right = 0, 0
    for task in environment.tasks.split("eval"):
        shown = [str(m["content"]) for m in environment.demonstration(task, 1) if m["role"] == "assistant"]
        found = [text.splitlines()[1:-1] for text in shown]
        assert [sorted(names) for names in found] == [sorted(names) for names in task.answer]
        lists += len(found)
        right += sum(names == answer for names, answer in zip(found, task.answer, strict=True))
    assert low <= right / lists <= high


def test_names_are_real_ones_unless_told_otherwise() -> None:
    tasks = load_environment("alphabet_sort", train_tasks=1, eval_tasks=2, max_turns=1).tasks
    assert [task.answer for task in tasks.split("eval")] == [
        [["Teresa Carlsson", "Sara Costa", "Nora Falk", "Omar Patel"]],
        [["Jonas Bennett", "Jack Cruz", "Oliver Fraser", "Aaron Unger"]],
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_turns": 0},
        {"min_names": 1},
        {"max_names": 20},
        {"power": 0.0},
        {"eval_tasks": 0},
        {"names": "real"},
        {"clean_demonstrations": 1.5},
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        load_environment("alphabet_sort", **wrong)
