from envs.errors import ConfigError, UpswingError, unknown_name


def test_an_unknown_name_comes_with_the_closest_ones() -> None:
    error = unknown_name("algorithm", "grpoo", ["ppo", "grpo", "sft"], "see conf/algorithm")
    assert isinstance(error, ConfigError)
    assert isinstance(error, UpswingError)
    assert str(error) == (
        "unknown algorithm 'grpoo'; did you mean 'grpo' or 'ppo'?; known: grpo, ppo, sft; see conf/algorithm"
    )


def test_without_anything_close_it_lists_what_there_is() -> None:
    assert str(unknown_name("split", "xyz", ["train"])) == "unknown split 'xyz'; known: train"
    assert str(unknown_name("split", "xyz", [])) == "unknown split 'xyz'"
