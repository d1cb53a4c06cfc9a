import json

from hypothesis import given
from hypothesis import strategies as st

from envs import Completion, Failure, Message, Task, Trajectory, Turn

text = st.text(max_size=20)
number = st.floats(allow_nan=False, allow_infinity=False)
ids = st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=5)
value = st.recursive(
    st.none() | st.booleans() | st.integers() | number | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
message = st.builds(lambda role, content: Message(role=role, content=content), st.sampled_from(["user", "tool"]), text)
answer = st.builds(lambda content: Message(role="assistant", content=content), st.none() | text)
task = st.builds(
    Task,
    id=text,
    prompt=st.lists(message, min_size=1, max_size=2).map(tuple),
    answer=value,
    info=st.dictionaries(text, value, max_size=2),
)
completion = st.builds(
    Completion,
    message=answer,
    finish_reason=st.sampled_from(["stop", "length", "tool_calls"]),
    prompt_ids=ids,
    completion_ids=ids,
    logprobs=st.none() | st.lists(number, max_size=3),
    versions=ids,
    usage=st.dictionaries(text, st.integers(0, 10**6), max_size=2),
)
turn = st.builds(
    Turn, st.lists(message, max_size=2).map(tuple), completion, fresh=st.booleans(), seconds=st.floats(0, 1e6)
)
trajectory = st.builds(
    Trajectory,
    task=task,
    sample=st.integers(0, 99),
    turns=st.lists(turn, max_size=3),
    tail=st.lists(message, max_size=1).map(tuple),
    stop=text,
    reward=st.none() | number,
    rewards=st.dictionaries(text, number, max_size=2),
    metrics=st.dictionaries(text, number, max_size=2),
    failure=st.none() | st.builds(Failure, st.sampled_from(["infrastructure", "harness", "reward"]), text, text),
    attempts=st.integers(1, 3),
    seconds=st.floats(0, 1e6),
)


@given(trajectory)
def test_json_round_trip_keeps_everything(trajectory: Trajectory) -> None:
    line = trajectory.to_json()
    assert "\n" not in line
    assert Trajectory.from_json(line) == trajectory


def test_the_json_of_a_trajectory_is_what_is_documented() -> None:
    asked = Task.ask("a", "2+2", "4", system="Be brief.", level=1)
    completion = Completion({"role": "assistant", "content": "4"}, "stop", [1, 2], [3], [-0.5], [7])
    record = Trajectory(asked, 1, [Turn(asked.prompt, completion, True, 0.25)], stop="completed", reward=1.0)
    assert json.loads(record.to_json()) == {
        "task": {
            "id": "a",
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2"}],
            "answer": "4",
            "info": {"level": 1},
        },
        "sample": 1,
        "turns": [
            {
                "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2"}],
                "completion": {"role": "assistant", "content": "4"},
                "finish_reason": "stop",
                "prompt_ids": [1, 2],
                "completion_ids": [3],
                "logprobs": [-0.5],
                "versions": [7],
                "usage": {},
                "fresh": True,
                "seconds": 0.25,
            }
        ],
        "tail": [],
        "stop": "completed",
        "reward": 1.0,
        "rewards": {},
        "metrics": {},
        "turn_rewards": [],
        "failure": None,
        "attempts": 1,
        "seconds": 0.0,
        "roles": {},
    }


def test_messages_start_anew_at_a_fresh_turn() -> None:
    def turn(question: str, answer: str, fresh: bool) -> Turn:
        asked: Message = {"role": "user", "content": question}
        return Turn((asked,), Completion({"role": "assistant", "content": answer}, "stop"), fresh)

    record = Trajectory(Task.ask("a", "1"), turns=[turn("1", "x", True), turn("2", "y", True), turn("3", "z", False)])
    assert [m["content"] for m in record.messages] == ["2", "y", "3", "z"]
    assert record.completion == "z"
    assert Trajectory(Task.ask("a", "1")).messages == [{"role": "user", "content": "1"}]
    assert Trajectory(Task.ask("a", "1")).completion == ""
