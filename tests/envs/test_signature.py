import pytest

from envs import ConfigError
from envs.signature import bind, describe_parameters


def make(size: int, clip_low: float = 0.2, mode: str | None = None, *, layers: tuple[int, ...] = ()) -> None:
    """Something a config would call."""


def open_ended(size: int = 1, **rest: object) -> None:
    """Takes anything."""


KIND = "algorithm 'grpo'"


def test_arguments_are_converted_by_their_annotations() -> None:
    bound = bind(make, {"size": 3, "clip_low": 1, "layers": [1, 2]}, KIND)
    assert bound == {"size": 3, "clip_low": 1.0, "layers": (1, 2)}
    assert isinstance(bound["clip_low"], float)
    assert bind(open_ended, {"other": 1}, KIND) == {"other": 1}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"size": 1, "clip_lo": 0.1},
            "algorithm 'grpo' has no argument 'clip_lo'; did you mean 'clip_low'?; its arguments: size: int, "
            "clip_low: float = 0.2, mode: str | None = None, layers: tuple[int, ...] = ()",
        ),
        (
            {"size": 1, "clip_low": "abc"},
            "algorithm 'grpo': argument 'clip_low' is 'abc' (str), expected float; set it like clip_low=0.2",
        ),
        ({"size": 1, "layers": [1, None]}, "algorithm 'grpo': argument 'layers[1]' is None (NoneType), expected int"),
        ({}, "algorithm 'grpo' needs 'size'; its arguments: size: int, clip_low"),
    ],
)
def test_what_does_not_fit_is_explained(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bind(make, kwargs, KIND)
    assert str(caught.value).startswith(message)


def test_an_annotation_that_does_not_exist_is_explained() -> None:
    def broken(x: "Missing") -> None:  # type: ignore[name-defined]
        """Has a typo."""

    with pytest.raises(ConfigError, match=r"cannot resolve the annotations of .*broken.*'Missing'"):
        bind(broken, {"x": 1}, KIND)


def test_a_function_without_parameters_says_so() -> None:
    assert describe_parameters(lambda: None) == "none"
