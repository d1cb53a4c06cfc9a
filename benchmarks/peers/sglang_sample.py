"""SGLang samples: its server on the CPU, asked over HTTP for all samples at once, without log-probabilities.

PyPI's sglang runs on a CPU without AVX-512 after two shims, which lie in `rl/inference/sglang/shims`: a package
`sgl_kernel` of which the plain path only imports names, and two operator schemas that torchvision's CPU build lacks.
One OpenMP thread: with two it draws one token a second. Weights are made up by the server.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
from protocol import Job, Play, answer, prompts

SERVER_READY_S = 600.0
_servers: list[psutil.Process] = []


def begin(job: Job) -> Play:
    model = Path(tempfile.mkdtemp(prefix="upswing-sglang-"))
    (model / "config.json").write_text(json.dumps(config(job["shape"])))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = {
        "model-path": str(model),
        "load-format": "dummy",
        "device": "cpu",
        "attention-backend": "torch_native",
        "max-total-tokens": "16384",
        "max-running-requests": "64",
        "mem-fraction-static": "0.3",
        "dtype": "float32",
        "host": "127.0.0.1",
        "port": str(port),
    }
    command = [sys.executable, "-m", "sglang.launch_server"]
    command += ["--disable-cuda-graph", "--disable-overlap-schedule", "--skip-tokenizer-init"]
    command += ["--sleep-on-idle"]  # or its scheduler spins between rounds, and takes a core from the others
    command += [part for name, value in arguments.items() for part in (f"--{name}", value)]
    settings = {"SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    shims = str(Path(__file__).parents[2] / "rl/inference/sglang/shims")
    server = subprocess.Popen(command, env={**os.environ, **settings, "PYTHONPATH": shims}, stdin=subprocess.DEVNULL)
    _servers.append(psutil.Process(server.pid))
    atexit.register(stop)
    url = f"http://127.0.0.1:{port}"
    wait(url, server)

    def play(number: int) -> int:
        requests = [prompt for prompt in prompts(job, number) for _ in range(job["group"])]
        sampling = {"temperature": 1.0, "max_new_tokens": job["new"], "ignore_eos": True}
        replies = post(f"{url}/generate", {"input_ids": requests, "sampling_params": sampling})
        return sum(len(reply["output_ids"]) for reply in replies)

    return play


def config(shape: dict[str, Any]) -> dict[str, Any]:
    """A `config.json` of the shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape["vocab_size"],
        "num_hidden_layers": shape["layers"],
        "hidden_size": shape["width"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": shape["head_size"],
        "intermediate_size": shape["ffn"],
        "max_position_embeddings": shape["context"],
        "rms_norm_eps": shape["norm_eps"],
        "rope_theta": shape["rope_theta"],
        "tie_word_embeddings": shape["tie_embeddings"],
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def wait(url: str, server: "subprocess.Popen[bytes]") -> None:
    """Until the server answers.

    Raises:
        RuntimeError: when it ends or takes too long.
    """
    deadline = time.monotonic() + SERVER_READY_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with code {server.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"the server was not ready after {SERVER_READY_S:.0f} s")


def post(url: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.loads(response.read())


def processes() -> list[psutil.Process]:
    return [process for server in _servers for process in (server, *server.children(recursive=True))]


def cpu() -> float:
    """CPU seconds of the server and its processes, and of this one."""
    times = [process.cpu_times() for process in processes()]
    return time.process_time() + sum(t.user + t.system for t in times)


def stop() -> None:
    for process in reversed(processes()):
        process.terminate()
    psutil.wait_procs(processes(), timeout=20)


if __name__ == "__main__":
    answer(begin, ["sglang", "torch"], cpu)
