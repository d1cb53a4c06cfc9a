"""Who goes to which server."""

from rl.inference.sglang.affinity import Affinity


def test_samples_and_turns_belong_together_and_like_beginnings_do_not() -> None:
    affinity = Affinity()
    instructions = list(range(50))
    first = affinity.key([*instructions, 1])
    assert affinity.key([*instructions, 1]) == first, "another sample"
    assert affinity.key([*instructions, 1, 7, 7, 7]) == first, "the next turn"
    assert affinity.key([*instructions, 1, 7, 7, 7, 8]) == first, "and the one after"
    assert affinity.key([*instructions, 2]) != first, "another task"
    assert affinity.key([*instructions]) != first


def test_what_is_old_is_forgotten() -> None:
    affinity = Affinity(most=2)
    first = affinity.key([1])
    affinity.key([2])
    assert affinity.key([1]) == first
    affinity.key([3])
    affinity.key([4])
    assert affinity.key([1]) != first
