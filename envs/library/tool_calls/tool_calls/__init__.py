"""Serve the customers of a shop through its API; what counts is the state the shop is in at the end.

Each rollout has a shop of its own, made from the task's seed: customers with credit, products with prices and stock,
orders. A task is one request or several. Six tools look things up and change them; a call that the shop refuses changes
nothing. The reward is 1 if the final state is the one that the requests lead to, in whatever way it was reached.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from envs import ConfigError, Environment, Hidden, Hooks, Message, Rollout, Rubric, Task, Taskset, derive_seed, tool_use
from envs.clients.scripted import tool_call

from .requests import KINDS, Call
from .shop import CUSTOMERS, Shop, State, answer, call, shop_of

SYSTEM = "You work for a shop. Do what is asked with the tools, in this order and nothing else, then say: done."


def load_environment(
    max_requests: int = 3,
    max_turns: int = 16,
    train_tasks: int = 2000,
    eval_tasks: int = 256,
    kinds: Sequence[str] = ("order", "most", "cancel", "credit"),
    last_names: str = "listed",
    system: str = SYSTEM,
    seed: int = 0,
) -> Environment:
    """Requests of a shop's customers.

    Args:
        max_requests: a task is 1 to this many requests (4 at most, each of another customer).
        max_turns: the most turns of the model, its last words included.
        train_tasks: how many tasks to train on.
        eval_tasks: how many tasks to evaluate on.
        kinds: what is asked for: order some, as many as credit and stock allow (most), cancel, add credit.
        last_names: of customers: listed (24), or invented, too many for a small model to learn them by heart.
        system: the system message.
        seed: decides the tasks.
    """
    if not 1 <= max_requests <= CUSTOMERS:
        raise ConfigError(f"max_requests={max_requests}; expected 1 to {CUSTOMERS}, the number of customers of a shop")
    if max_turns < 1 or train_tasks < 1 or eval_tasks < 1:
        raise ConfigError(
            f"max_turns={max_turns}, train_tasks={train_tasks}, eval_tasks={eval_tasks}; expected 1 or more"
        )
    if not kinds or not set(kinds) <= set(KINDS):
        raise ConfigError(f"kinds={list(kinds)}; expected some of {', '.join(KINDS)}")
    if last_names not in ("listed", "invented"):
        raise ConfigError(f"last_names='{last_names}'; expected listed or invented")
    count = {"train": train_tasks, "eval": eval_tasks}

    def tasks(split: str) -> list[Task]:
        info = {"split": split, "invented": last_names == "invented"}
        seeds = [derive_seed(seed, split, i) for i in range(count[split])]
        return [
            _task(f"{split}-{i}", {"seed": each, **info}, kinds, max_requests, system) for i, each in enumerate(seeds)
        ]

    tools: list[Callable[..., Any]] = [
        find_customers,
        find_products,
        list_orders,
        place_order,
        cancel_order,
        add_credit,
    ]
    return Environment(
        tasks=Taskset.from_function(tasks),
        harness=tool_use(tools, max_turns=max_turns, hooks=[Hooks(on_setup=_open)]),
        rubric=Rubric({right_state: 1.0, untouched: 0.0, calls: 0.0, failed_calls: 0.0}),
        demonstrate=demonstrate,
    )


def _task(name: str, info: dict[str, Any], kinds: Sequence[str], max_requests: int, system: str) -> Task:
    shop, rng = shop_of(info), random.Random(derive_seed(info["seed"], "requests"))
    asked, steps = list[str](), list[Call]()
    for customer_id in rng.sample(list(shop.state["customers"]), rng.randint(1, max_requests)):
        sentence, calls_of = rng.choice([KINDS[kind] for kind in kinds])(shop, customer_id, rng)
        asked.append(sentence)
        steps += calls_of
        call(shop, *calls_of[-1])
    return Task.ask(name, " ".join(asked), shop.state, system=system, **info, steps=[list(step) for step in steps])


def _open(rollout: Rollout) -> None:
    rollout.state.shop = shop_of(rollout.task.info)


# The tools wait for nothing, so that calls of one turn happen one after the other.


async def find_customers(name: str, shop: Hidden[Shop]) -> str:
    """Find customers: their ids, names and credit.

    Args:
        name: a name or part of one.
    """
    return answer(lambda: shop.find("customers", name))


async def find_products(name: str, shop: Hidden[Shop]) -> str:
    """Find products: their ids, names, prices and how many are in stock.

    Args:
        name: a name or part of one.
    """
    return answer(lambda: shop.find("products", name))


async def list_orders(customer_id: str, shop: Hidden[Shop]) -> str:
    """List the orders of a customer: their ids, products, quantities and status (open, shipped or cancelled).

    Args:
        customer_id: as find_customers returned it.
    """
    return answer(lambda: shop.orders(customer_id))


async def place_order(customer_id: str, product_id: str, quantity: int, shop: Hidden[Shop]) -> str:
    """Order a product for a customer, who pays with credit. Returns the id of the order.

    Args:
        customer_id: as find_customers returned it.
        product_id: as find_products returned it.
        quantity: how many.
    """
    return answer(lambda: shop.order(customer_id, product_id, quantity))


async def cancel_order(order_id: str, shop: Hidden[Shop]) -> str:
    """Cancel an open order: the customer gets the credit back, the shop the product.

    Args:
        order_id: as list_orders returned it.
    """
    return answer(lambda: shop.cancel(order_id))


async def add_credit(customer_id: str, amount: int, shop: Hidden[Shop]) -> str:
    """Add to the credit of a customer. Returns the new credit.

    Args:
        customer_id: as find_customers returned it.
        amount: how much.
    """
    return answer(lambda: shop.credit(customer_id, amount))


def demonstrate(task: Task, sample: int) -> list[Message]:
    """Looks up what a request names, then does it, one call a turn; every other time by the first name alone."""
    shop, brief = shop_of(task.info), (task.info["seed"] + sample) % 2 == 1
    messages: list[Message] = []
    for number, (name, told) in enumerate(task.info["steps"]):
        arguments = {"name": told["name"].split()[0]} if brief and name == "find_customers" else told
        messages.append(tool_call(name, json.dumps(arguments), f"call_{number}"))
        result = call(shop, name, arguments)
        messages.append({"role": "tool", "tool_call_id": f"call_{number}", "name": name, "content": result})
    return [*messages, {"role": "assistant", "content": "Done."}]


# Rewards and metrics


def right_state(state: Any, answer: State) -> float:
    """1 if the shop is as it should be; new orders may have come in any order."""
    return float(_comparable(state.shop.state) == _comparable(answer))


def _comparable(state: State) -> tuple[Any, ...]:
    orders = sorted(json.dumps(order, sort_keys=True) for order in state["orders"].values())
    return state["customers"], state["products"], orders


def untouched(state: Any, info: Mapping[str, Any]) -> float:
    """1 if nothing has changed."""
    return float(state.shop.state == shop_of(info).state)


def calls(messages: Sequence[Message]) -> float:
    """How many tools were called."""
    return float(sum(message["role"] == "tool" for message in messages))


def failed_calls(messages: Sequence[Message]) -> float:
    """How many calls were refused, or did not fit."""
    return float(sum(m["role"] == "tool" and (m["content"] or "").startswith("Error: ") for m in messages))
