import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "rollout_overhead.py"


def test_the_benchmark_reports_what_it_documents() -> None:
    command = [
        sys.executable,
        str(BENCHMARK),
        "--rollouts",
        "20",
        "--concurrency",
        "4",
        "--rounds",
        "1",
        "--many",
        "20",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    result = json.loads(done.stdout.splitlines()[-1])
    for scenario in ("single", "tool", "bare"):
        assert result[f"{scenario}.cpu_ms_per_rollout"] > 0
        assert result[f"{scenario}.rollouts_per_s"] > 0
    assert (result["rollouts"], result["concurrency"], result["rounds"], result["many.rollouts"]) == (20, 4, 1, 20)
    assert result["many.seconds_over_ideal"] > 0 and result["many.kb_per_idle_rollout"] > 0
    assert set(result["machine"]) == {"cpu", "cores", "memory_gib", "system"}
    assert "aiohttp" in result["versions"]
