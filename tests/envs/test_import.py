import pkgutil
import subprocess
import sys

import envs


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    heavy = "{'jax', 'numpy', 'aiohttp', 'asyncio', 'hydra', 'pyarrow', 'rl'}"
    assert run(f"import envs, sys; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_using_an_environment_loads_neither_jax_nor_aiohttp() -> None:
    use = "import envs, sys; [getattr(envs, name) for name in envs.__all__]"
    assert run(f"{use}; print(sorted({{'jax', 'aiohttp', 'hydra', 'rl'}} & set(sys.modules)))") == "[]"


def test_every_public_name_exists() -> None:
    assert len(envs.__all__) == len(set(envs.__all__))
    for name in envs.__all__:
        assert getattr(envs, name) is not None
    assert sorted(envs._HOME) == sorted(envs.__all__)
    assert set(envs.__all__) <= set(dir(envs))


def test_a_wrong_name_is_an_attribute_error() -> None:
    assert not hasattr(envs, "Enviroment")


def test_no_module_hides_a_public_name() -> None:
    """Importing `envs.x` sets the attribute `x` of the package; a public `x` from elsewhere would be gone."""
    modules = {module.name for module in pkgutil.iter_modules(envs.__path__)}
    assert modules & set(envs.__all__) == set()
