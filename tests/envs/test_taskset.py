from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import ConfigError, Task, Taskset, TasksetError


def tasks(*names: str) -> list[Task]:
    return [Task.ask(name, f"What is {name}?") for name in names]


def ids(taskset: Taskset) -> list[str]:
    return [task.id for task in taskset]


def test_a_taskset_is_a_sequence_over_its_splits() -> None:
    taskset = Taskset({"train": tasks("a", "b"), "eval": tasks("c")})
    assert taskset.splits == ("train", "eval")
    assert len(taskset) == 3
    assert ids(taskset) == ["a", "b", "c"]
    assert [taskset[i].id for i in (0, 1, 2, -1, -3)] == ["a", "b", "c", "c", "a"]
    assert [task.id for task in taskset[1:]] == ["b", "c"]
    assert ids(taskset.split("eval")) == ["c"]
    assert taskset.split("train")[-1].id == "b"
    with pytest.raises(IndexError):
        taskset[3]
    with pytest.raises(IndexError):
        taskset[-4]


def test_a_split_is_built_once_and_when_it_is_used() -> None:
    built: Counter[str] = Counter()

    def make(split: str) -> list[Task]:
        built[split] += 1
        return tasks(f"{split}-0", f"{split}-1")

    taskset = Taskset.from_function(make, splits=("train", "eval"))
    evaluation = taskset.split("eval").shuffle(0).head(1)
    assert repr(taskset) == "Taskset(train: not built, eval: not built)"
    assert built == {}
    assert len(evaluation) == 1
    assert len(taskset.split("eval")) == 2
    assert built == {"eval": 1}
    assert repr(taskset) == "Taskset(train: not built, eval: 2)"


def test_splits_may_be_known_only_when_read() -> None:
    taskset = Taskset(lambda: {"hard": tasks("a", "b")})
    shuffled = taskset.shuffle(1)
    assert repr(taskset) == repr(shuffled) == "Taskset(not built)"
    assert shuffled.splits == ("hard",)
    assert sorted(ids(shuffled)) == ["a", "b"]


def test_shuffle_is_the_same_in_every_version_of_python() -> None:
    taskset = Taskset({"train": tasks(*"abcdefgh")})
    assert "".join(ids(taskset.shuffle(0))) == "hfgdacbe"
    assert "".join(ids(taskset.shuffle(1))) == "dgafebhc"


@given(st.sets(st.text(min_size=1, max_size=5), min_size=1, max_size=20), st.integers(0, 99))
def test_shuffle_is_a_permutation_that_the_order_does_not_matter_to(names: set[str], seed: int) -> None:
    taskset = Taskset({"train": tasks(*names)})
    shuffled = ids(taskset.shuffle(seed))
    assert Counter(shuffled) == Counter(names)
    assert shuffled == ids(Taskset({"train": tasks(*sorted(names))}).shuffle(seed))


def test_splits_survive_head_shuffle_and_select() -> None:
    taskset = Taskset({"train": tasks("a", "b", "c"), "eval": tasks("d", "e", "f")})
    assert ids(taskset.head(2)) == ["a", "b", "d", "e"]
    assert ids(taskset.head(9)) == list("abcdef")
    assert sorted(ids(taskset.shuffle(0).split("eval"))) == ["d", "e", "f"]
    assert ids(taskset.select(lambda task: task.id in "be")) == ["b", "e"]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": []}, "split 'train' is empty; expected at least one task"),
        ({}, "a taskset needs at least one split, found none"),
        ({"train": tasks("a", "b", "a")}, "task 2 of split 'train' has the id 'a', which occurs twice"),
        ({"train": tasks("a"), "eval": tasks("a")}, "task 0 of split 'eval' has the id 'a', which occurs in split 'tr"),
        ({"train": ["a"]}, "task 0 of split 'train' is 'a' (str); expected a Task"),
        ({"train": [Task("", tasks("a")[0].prompt)]}, "task 0 of split 'train' has the id ''; expected a non-empty"),
        ({"train": [Task("a", ())]}, "task 0 of split 'train' ('a') has the prompt (); expected at least one message"),
        ({"train": [Task("a", "hi")]}, "task 0 of split 'train' ('a') has the prompt 'hi'; expected at least one"),  # type: ignore[arg-type]
    ],
)
def test_what_is_wrong_with_the_tasks_is_said(splits: dict[str, list[Task]], message: str) -> None:
    with pytest.raises(TasksetError) as caught:
        list(Taskset(splits))
    assert str(caught.value).startswith(message)


def test_a_selection_that_keeps_nothing_says_so() -> None:
    nothing = Taskset({"train": tasks("a", "b")}).select(lambda task: False)
    with pytest.raises(TasksetError, match=r"select\(\) kept none: split 'train' of 2 tasks became empty"):
        len(nothing)


def test_an_unknown_split_and_an_empty_head_are_refused_at_once() -> None:
    taskset = Taskset({"train": tasks("a"), "eval": tasks("b")})
    with pytest.raises(ConfigError, match="unknown split 'evla'; did you mean 'eval'"):
        taskset.split("evla")
    with pytest.raises(ConfigError, match=r"head\(0\): expected at least 1 task"):
        taskset.head(0)


def test_what_is_for_evaluation_only_stays_so_in_all_that_is_made_of_it() -> None:
    taskset = Taskset({"train": tasks("a", "b"), "eval": tasks("c"), "hard": tasks("d")}).evaluation_only(
        "hard", "eval"
    )
    assert Taskset({"train": tasks("a")}).reserved == frozenset()
    assert ids(taskset) == ["a", "b", "c", "d"]
    made = taskset.shuffle(0).select(lambda task: True).head(1)
    assert taskset.reserved == made.reserved == {"eval", "hard"}
    assert made.split("hard").reserved == {"hard"} and made.split("train").reserved == frozenset()
    assert made.evaluation_only("train").reserved == {"train", "eval", "hard"}


def test_a_split_that_is_not_there_cannot_be_for_evaluation_only() -> None:
    read: list[str] = []

    def splits() -> dict[str, list[Task]]:
        read.append("file")
        return {"train": tasks("a"), "eval": tasks("b")}

    taskset = Taskset(splits).evaluation_only("evla")
    assert read == []
    with pytest.raises(ConfigError, match=r"unknown split 'evla'; did you mean 'eval'\?"):
        _ = taskset.reserved
