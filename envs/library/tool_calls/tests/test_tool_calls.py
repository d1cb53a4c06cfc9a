"""The shop, its tasks and what counts, through what users of `tool_calls` call."""

import json

import pytest

from envs import ConfigError, Environment, Message, ScriptedClient, Task, Trajectory, load_environment, run_task
from envs.clients.scripted import tool_call


@pytest.fixture(scope="module")
def environment() -> Environment:
    return load_environment("tool_calls", train_tasks=100, eval_tasks=100)


async def say(environment: Environment, task: Task, *replies: Message | str) -> Trajectory:
    trajectory = await run_task(environment, task, ScriptedClient([*replies, "Done."]))
    assert trajectory.failure is None, trajectory.failure
    return trajectory


def results(trajectory: Trajectory) -> list[str]:
    return [str(message["content"]) for message in trajectory.messages if message["role"] == "tool"]


def call(tool: str, /, **arguments: object) -> Message:
    return tool_call(tool, json.dumps(arguments))


async def test_the_shop_keeps_its_books(environment: Environment) -> None:
    task = environment.tasks[0]
    looked = await say(environment, task, call("find_customers", name=""), call("find_products", name=""))
    customers, products = map(json.loads, results(looked))
    customer, product = customers[0], products[0]
    one = {"customer_id": customer["id"], "product_id": product["id"], "quantity": 1}
    trajectory = await say(
        environment,
        task,
        call("add_credit", customer_id=customer["id"], amount=product["price"]),
        call("place_order", **one),
        call("find_customers", name=customer["name"].upper()),
        call("find_products", name=product["name"]),
        call("cancel_order", order_id="o9"),
        call("cancel_order", order_id="o9"),
        call("find_products", name=product["name"]),
    )
    credit, made, paid, taken, cancelled, again, back = results(trajectory)
    assert json.loads(credit) == customer["credit"] + product["price"] and json.loads(made) == "o9"
    assert json.loads(paid) == [customer] and json.loads(taken)[0]["stock"] == product["stock"] - 1
    assert cancelled == "null" and again == "Error: order o9 is cancelled."
    assert json.loads(back) == [product]


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("place_order", {"customer_id": "c1", "product_id": "p1", "quantity": 1000}, "in stock"),
        ("place_order", {"customer_id": "c1", "product_id": "p1", "quantity": -3}, "cannot order -3"),
        ("place_order", {"customer_id": "c9", "product_id": "p1", "quantity": 1}, "there is no customer 'c9'"),
        ("place_order", {"customer_id": "c1", "product_id": "p1"}, "needs the argument 'quantity'"),
        ("add_credit", {"customer_id": "c1", "amount": 0}, "cannot add 0"),
        ("cancel_order", {"order_id": "o2"}, "order o2 is shipped"),
        ("cancel_order", {"order_id": "o1", "shop": {}}, "has no argument 'shop'"),
    ],
)
async def test_what_is_refused_changes_nothing(
    environment: Environment, name: str, arguments: dict[str, object], reason: str
) -> None:
    trajectory = await say(environment, environment.tasks[0], call(name, **arguments))
    assert reason in results(trajectory)[0]
    assert trajectory.metrics == {"untouched": 1.0, "calls": 1.0, "failed_calls": 1.0} and trajectory.reward == 0.0


async def test_only_the_right_state_counts(environment: Environment) -> None:
    for task in environment.tasks.split("eval").head(20):
        shown = [m for m in environment.demonstration(task) if m["role"] == "assistant"]
        gold = await say(environment, task, *shown)
        assert gold.reward == 1.0 and gold.metrics["failed_calls"] == 0.0
        assert results(gold) == [m["content"] for m in environment.demonstration(task) if m["role"] == "tool"]
        more = await say(environment, task, *shown[:-1], call("add_credit", customer_id="c1", amount=1))
        assert more.reward == 0.0
        assert (await say(environment, task, "Done.")).reward == 0.0


async def test_several_calls_of_one_turn_all_count(environment: Environment) -> None:
    task = next(task for task in environment.tasks if sum(step[0] == "add_credit" for step in task.info["steps"]) == 1)
    steps = [step for step in task.info["steps"] if step[0] in ("place_order", "cancel_order", "add_credit")]
    at_once = tool_call("", "")
    at_once["tool_calls"] = [
        call(name, **arguments)["tool_calls"][0] | {"id": f"call_{i}"} for i, (name, arguments) in enumerate(steps)
    ]
    trajectory = await say(environment, task, at_once)
    assert trajectory.reward == 1.0 and len(trajectory.turns) == 2


def test_tasks_are_of_every_kind_and_share_no_customer(environment: Environment) -> None:
    names = {
        split: {c["name"].split()[1] for t in environment.tasks.split(split) for c in t.answer["customers"].values()}
        for split in ("train", "eval")
    }
    assert names["train"].isdisjoint(names["eval"])
    kinds = {step[0] for task in environment.tasks for step in task.info["steps"]}
    assert kinds == {"find_customers", "find_products", "list_orders", "place_order", "cancel_order", "add_credit"}


async def test_names_can_be_invented_too_many_to_be_known_by_heart() -> None:
    environment = load_environment("tool_calls", train_tasks=100, eval_tasks=100, last_names="invented")
    names = {
        split: {c["name"] for t in environment.tasks.split(split) for c in t.answer["customers"].values()}
        for split in ("train", "eval")
    }
    lasts = {split: {name.split()[1] for name in found} for split, found in names.items()}
    assert lasts["train"].isdisjoint(lasts["eval"]) and min(map(len, lasts.values())) > 300
    firsts = {name.split()[0].lower() for name in names["train"]}
    assert not any(first in last.lower() for first in firsts for last in lasts["train"] | lasts["eval"])
    for task in environment.tasks.split("eval").head(20):
        for sample in (0, 1):
            shown = [m for m in environment.demonstration(task, sample) if m["role"] == "assistant"]
            trajectory = await say(environment, task, *shown)
            assert trajectory.reward == 1.0 and trajectory.metrics["failed_calls"] == 0.0


def test_customers_are_looked_up_by_the_whole_name_or_the_first(environment: Environment) -> None:
    def words(task: Task, sample: int) -> int:
        call = next(c for m in environment.demonstration(task, sample) for c in m.get("tool_calls", ()))
        return len(json.loads(call["function"]["arguments"])["name"].split())

    tasks = environment.tasks.split("train").head(20)
    assert all(sorted([words(task, 0), words(task, 1)]) == [1, 2] for task in tasks)
    assert {words(task, 0) for task in tasks} == {1, 2}


def test_only_the_kinds_that_are_named_are_asked_for() -> None:
    environment = load_environment("tool_calls", train_tasks=50, kinds=["cancel", "credit"])
    kinds = {task.info["steps"][-1][0] for task in environment.tasks}
    assert kinds == {"cancel_order", "add_credit"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_requests": 5},
        {"max_requests": 0},
        {"max_turns": 0},
        {"eval_tasks": 0},
        {"last_names": "many"},
        {"kinds": []},
        {"kinds": ["refund"]},
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        load_environment("tool_calls", **wrong)
