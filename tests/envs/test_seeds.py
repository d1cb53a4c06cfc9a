import pytest

from envs import derive_seed


def test_seeds_are_the_same_everywhere_and_for_ever() -> None:
    assert derive_seed(0, "task", 1) == 2142509979
    assert derive_seed(None) == 1306739759
    assert derive_seed() == 1800408251


def test_parts_do_not_run_into_each_other() -> None:
    seeds = [derive_seed(*parts) for parts in (("a", "b"), ("ab",), ("a", "b", None), (1,), ("1",), (1, 1), (11,))]
    assert len(set(seeds)) == len(seeds)


def test_seeds_fit_into_31_bits() -> None:
    seeds = [derive_seed("purpose", i) for i in range(2000)]
    assert min(seeds) >= 0
    assert 2**30 < max(seeds) < 2**31
    assert len(set(seeds)) == 2000


@pytest.mark.parametrize("part", [1.0, True, (1,), b"a"])
def test_other_parts_are_refused(part: object) -> None:
    with pytest.raises(TypeError, match="a seed derives from int, str and None"):
        derive_seed(0, part)  # type: ignore[arg-type]
