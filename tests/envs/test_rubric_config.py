from pathlib import Path

import pytest

from envs import ConfigError, ScriptedClient, evaluate, load_environment

EXTRA = "def shouting(completion) -> float:\n    return float(completion.isupper())\n"


async def test_weights_and_metrics_change_without_touching_code(tmp_path: Path) -> None:
    (tmp_path / "extra.py").write_text(EXTRA)
    changes = {
        "weights": {"exact_match": 2.0, "similarity": 0, "shouting": 0.5},
        "metrics": ["turns", "characters", f"{tmp_path}/extra.py:shouting"],
    }
    environment = load_environment("reverse_text", rubric=changes)
    assert dict(environment.rubric.weights) == {
        "similarity": 0.0,
        "exact_match": 2.0,
        "turns": 0.0,
        "characters": 0.0,
        "shouting": 0.5,
    }
    result = await evaluate(environment, ScriptedClient(lambda messages: "ABC"), tasks=2)
    assert [t.reward for t in result.trajectories] == [0.5, 0.5]
    assert result.trajectories[0].metrics == {"similarity": pytest.approx(0, abs=1), "turns": 1.0, "characters": 3.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"exact": 1.0}}, "unknown reward function 'exact'; did you mean 'exact_match'"),
        ({"weights": {"exact_match": "a"}}, r"env.rubric: argument 'weights\['exact_match'\]' is 'a'"),
        ({"weigths": {}}, "env.rubric has no argument 'weigths'; did you mean 'weights'"),
        ({"metrics": ["turn"]}, "unknown metric 'turn'; did you mean 'turns'"),
        ({"metrics": ["nowhere.py:f"]}, "metric 'nowhere.py:f': cannot import nowhere.py"),
        ({"metrics": ["envs.metrics:f"]}, "metric 'envs.metrics:f': envs.metrics has no function 'f'"),
    ],
)
def test_what_does_not_fit_is_explained(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_environment("reverse_text", rubric=changes)
