"""What is started, word by word."""

import sys
from pathlib import Path

import pytest

from envs.errors import ConfigError
from rl.inference.sglang.command import SHIMS, check_model, find_python, router_command, server_command

PYTHON, MODEL = Path("/env/bin/python"), Path("/models/tiny")


def test_a_server_on_a_cpu() -> None:
    command = server_command(PYTHON, MODEL, port=30000)
    assert " ".join(command.argv) == (
        "/env/bin/python -m sglang.launch_server --model-path /models/tiny --host 127.0.0.1 --port 30000 "
        "--dtype float32 --device cpu --attention-backend torch_native --disable-cuda-graph --disable-overlap-schedule "
        "--sleep-on-idle --max-total-tokens 16384 --max-running-requests 64 --mem-fraction-static 0.3"
    )
    assert command.settings == {
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "SGLANG_USE_CPU_ENGINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(SHIMS),
    }


def test_the_second_server_of_a_node_with_gpus() -> None:
    command = server_command(
        PYTHON,
        MODEL,
        port=30001,
        host="0.0.0.0",
        platform="cuda",
        dtype="bfloat16",
        tensor_parallel=2,
        data_parallel=2,
        memory_fraction=0.5,
        index=1,
        arguments={"enable_memory_saver": True, "kv-cache-dtype": "fp8_e5m2"},
    )
    assert " ".join(command.argv) == (
        "/env/bin/python -m sglang.launch_server --model-path /models/tiny --host 0.0.0.0 --port 30001 "
        "--dtype bfloat16 --base-gpu-id 4 --tensor-parallel-size 2 --data-parallel-size 2 --mem-fraction-static 0.5 "
        "--enable-memory-saver --kv-cache-dtype fp8_e5m2"
    )
    assert command.settings == {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def test_the_gpus_of_several_servers_follow_the_first_one_that_is_given() -> None:
    argv = [
        server_command(
            PYTHON, MODEL, port=1, platform="cuda", tensor_parallel=2, index=index, arguments={"base_gpu_id": 4}
        ).argv
        for index in range(2)
    ]
    assert [words[words.index("--base-gpu-id") + 1] for words in argv] == ["4", "6"]


def test_arguments_override_and_take_away() -> None:
    arguments = {
        "--max-total-tokens": 512,
        "disable-cuda-graph": False,
        "attention_backend": None,
        "tokenizer-mode": "slow",
    }
    words = server_command(PYTHON, MODEL, port=1, arguments=arguments).argv
    assert words[words.index("--max-total-tokens") + 1] == "512" and words.count("--max-total-tokens") == 1
    assert "--disable-cuda-graph" not in words and "--attention-backend" not in words
    assert words[-2:] == ("--tokenizer-mode", "slow")


def test_a_list_is_several_words() -> None:
    words = server_command(PYTHON, MODEL, port=1, arguments={"lora_target_modules": ["q_proj", "v_proj"]}).argv
    assert words[-3:] == ("--lora-target-modules", "q_proj", "v_proj")


def test_the_router_decides_nothing_by_itself() -> None:
    command = router_command(PYTHON, port=30000, metrics_port=29000)
    assert command.settings == {"PYTHONPATH": str(SHIMS)}
    assert router_command(PYTHON, port=30000, metrics_port=29000, platform="cuda").settings == {}
    assert " ".join(command.argv) == (
        "/env/bin/python -m sglang_router.launch_router --host 127.0.0.1 --port 30000 --prometheus-host 127.0.0.1 "
        "--prometheus-port 29000 --policy manual --assignment-mode min_load --disable-retries "
        "--disable-circuit-breaker --disable-health-check --log-level warn"
    )


def test_what_steers_our_python_stays_behind() -> None:
    inherited = {"PATH": "/bin", "PYTHONPATH": "/ours", "VIRTUAL_ENV": "/ours", "CUDA_VISIBLE_DEVICES": "0,1"}
    environment = server_command(PYTHON, MODEL, port=1, platform="cuda").environment(inherited)
    assert environment == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def test_a_platform_there_is_none_of() -> None:
    with pytest.raises(ConfigError, match=r"unknown inference.platform 'gpu'; did you mean 'cpu'\?; known: cpu, cuda"):
        server_command(PYTHON, MODEL, port=1, platform="gpu")


def test_an_environment_is_found_or_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no SGLang in .*/env \(no bin/python\); .* make sglang"):
        find_python(tmp_path / "env")
    (tmp_path / "env" / "bin").mkdir(parents=True)
    python = tmp_path / "env" / "bin" / "python"
    python.symlink_to(sys.executable)
    assert find_python(tmp_path / "env") == python


def test_what_is_no_model_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SGLang cannot serve .*/none: there is no such folder; expected a Hugging"):
        check_model(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"SGLang cannot serve .*: it has no config\.json"):
        check_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    check_model(tmp_path)
