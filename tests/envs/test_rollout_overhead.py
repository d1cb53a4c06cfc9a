import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "rollout_overhead.py"


def test_the_benchmark_reports_what_it_documents() -> None:
    command = [sys.executable, str(BENCHMARK), "--rollouts", "20", "--concurrency", "4", "--rounds", "1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    result = json.loads(done.stdout.splitlines()[-1])
    for variant in ("single", "journal", "bare"):
        assert result[f"{variant}.cpu_ms_per_rollout"] > 0
        assert result[f"{variant}.rollouts_per_s"] > 0
    assert (result["rollouts"], result["concurrency"], result["rounds"]) == (20, 4, 1)
    assert set(result["machine"]) == {"cpu", "cores", "memory_gib", "system"}
    assert "aiohttp" in result["versions"]
