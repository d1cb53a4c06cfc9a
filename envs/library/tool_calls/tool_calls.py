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

SYSTEM = "You work for a shop. Do what is asked with the tools, in this order and nothing else, then say: done."
State = dict[str, Any]


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
    if not kinds or not set(kinds) <= set(_WANTS):
        raise ConfigError(f"kinds={list(kinds)}; expected some of {', '.join(_WANTS)}")
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


# The shop


class Refused(Exception):
    """What the shop does not do; the text says why."""


class Shop:
    """A shop. `state` is all of it, in JSON: customers, products and orders by their ids; amounts are whole."""

    def __init__(self, state: State) -> None:
        self.state: State = json.loads(json.dumps(state))

    def find(self, kind: str, words: str) -> list[dict[str, Any]]:
        """The customers or products whose name has these words in it."""
        wanted = words.lower().strip()
        return [{"id": key} | record for key, record in self.state[kind].items() if wanted in record["name"].lower()]

    def orders(self, customer_id: str) -> list[dict[str, Any]]:
        self._known("customers", customer_id)
        return [{"id": key} | o for key, o in self.state["orders"].items() if o["customer_id"] == customer_id]

    def order(self, customer_id: str, product_id: str, quantity: int) -> str:
        customer, product = self._known("customers", customer_id), self._known("products", product_id)
        cost = quantity * product["price"]
        if quantity < 1:
            raise Refused(f"cannot order {quantity}")
        if quantity > product["stock"]:
            raise Refused(f"only {product['stock']} of {product['name']} in stock")
        if cost > customer["credit"]:
            raise Refused(f"costs {cost}, {customer['name']} has a credit of {customer['credit']}")
        product["stock"] -= quantity
        customer["credit"] -= cost
        made = f"o{len(self.state['orders']) + 1}"
        order = {"customer_id": customer_id, "product_id": product_id, "quantity": quantity, "status": "open"}
        self.state["orders"][made] = order
        return made

    def cancel(self, order_id: str) -> None:
        order = self._known("orders", order_id)
        if order["status"] != "open":
            raise Refused(f"order {order_id} is {order['status']}")
        order["status"] = "cancelled"
        product = self.state["products"][order["product_id"]]
        product["stock"] += order["quantity"]
        self.state["customers"][order["customer_id"]]["credit"] += order["quantity"] * product["price"]

    def credit(self, customer_id: str, amount: int) -> int:
        customer = self._known("customers", customer_id)
        if amount < 1:
            raise Refused(f"cannot add {amount}")
        customer["credit"] += amount
        return int(customer["credit"])

    def _known(self, kind: str, id: str) -> dict[str, Any]:
        if id not in self.state[kind]:
            raise Refused(f"there is no {kind[:-1]} '{id}'")
        found: dict[str, Any] = self.state[kind][id]
        return found


def _open(rollout: Rollout) -> None:
    rollout.state.shop = Shop(_shop_of(rollout.task.info))


def _answer(call: Callable[[], Any]) -> str:
    try:
        return json.dumps(call())
    except Refused as reason:
        return f"Error: {reason}."


# The tools wait for nothing, so that calls of one turn happen one after the other.


async def find_customers(name: str, shop: Hidden[Shop]) -> str:
    """Find customers: their ids, names and credit.

    Args:
        name: a name or part of one.
    """
    return _answer(lambda: shop.find("customers", name))


async def find_products(name: str, shop: Hidden[Shop]) -> str:
    """Find products: their ids, names, prices and how many are in stock.

    Args:
        name: a name or part of one.
    """
    return _answer(lambda: shop.find("products", name))


async def list_orders(customer_id: str, shop: Hidden[Shop]) -> str:
    """List the orders of a customer: their ids, products, quantities and status (open, shipped or cancelled).

    Args:
        customer_id: as find_customers returned it.
    """
    return _answer(lambda: shop.orders(customer_id))


async def place_order(customer_id: str, product_id: str, quantity: int, shop: Hidden[Shop]) -> str:
    """Order a product for a customer, who pays with credit. Returns the id of the order.

    Args:
        customer_id: as find_customers returned it.
        product_id: as find_products returned it.
        quantity: how many.
    """
    return _answer(lambda: shop.order(customer_id, product_id, quantity))


async def cancel_order(order_id: str, shop: Hidden[Shop]) -> str:
    """Cancel an open order: the customer gets the credit back, the shop the product.

    Args:
        order_id: as list_orders returned it.
    """
    return _answer(lambda: shop.cancel(order_id))


async def add_credit(customer_id: str, amount: int, shop: Hidden[Shop]) -> str:
    """Add to the credit of a customer. Returns the new credit.

    Args:
        customer_id: as find_customers returned it.
        amount: how much.
    """
    return _answer(lambda: shop.credit(customer_id, amount))


# Tasks

CUSTOMERS = 4
_FIRST = "Ada Ben Cleo Dan Eve Finn Gina Hal Iris Jon Kira Lou Max Nell Otto Pia"
_LAST = {
    "train": "Abel Brook Carver Drake Ellis Frost Grant Hobbs Irwin Joyce Knox Lowe Mason Nash Orr Pratt",
    "eval": "Quill Reed Stone Tate Usher Vance Wade York",
}
_LETTERS = ("bdfgklmnprstvz", "aeiou", "bdfgklmnprstvz", "aeiou", "klmnrst")
_PRODUCTS = (
    "red pencil,blue pencil,green pencil,small notebook,large notebook,desk lamp,floor lamp,glue stick,ink bottle"
)


def make_shop(seed: int, split: str, *, invented: bool = False) -> State:
    """The state that a shop begins with. Customers of different splits have different names."""
    rng = random.Random(seed)
    lasts = _invent(rng, split) if invented else rng.sample(_LAST[split].split(), CUSTOMERS)
    names = [f"{first} {last}" for first, last in zip(rng.sample(_FIRST.split(), CUSTOMERS), lasts, strict=True)]
    customers = {f"c{i}": {"name": name, "credit": rng.randint(20, 90)} for i, name in enumerate(names, 1)}
    prices = rng.sample(range(2, 12), 5)
    products = {
        f"p{i}": {"name": name, "price": price, "stock": rng.randint(4, 30)}
        for i, (name, price) in enumerate(zip(rng.sample(_PRODUCTS.split(","), 5), prices, strict=True), 1)
    }
    # Each customer has an open order, and one of another product that is not to be cancelled.
    orders: State = {}
    for customer in customers:
        for product, status in zip(rng.sample(list(products), 2), ("open", "shipped"), strict=True):
            order = {"customer_id": customer, "product_id": product, "quantity": rng.randint(1, 5), "status": status}
            orders[f"o{len(orders) + 1}"] = order
    return {"customers": customers, "products": products, "orders": orders}


def _invent(rng: random.Random, split: str) -> list[str]:
    """Last names of letters like `Sorek`, none with a first name in it: that would be found with its bearer's."""
    found: list[str] = []
    while len(found) < CUSTOMERS:
        name = "".join(map(rng.choice, _LETTERS)).capitalize()
        mine = "eval" if derive_seed("split", name) % 4 == 0 else "train"
        if mine == split and name not in found and not any(f in name.lower() for f in _FIRST.lower().split()):
            found.append(name)
    return found


def _shop_of(info: Mapping[str, Any]) -> State:
    return make_shop(info["seed"], info["split"], invented=info["invented"])


Call = tuple[str, dict[str, Any]]


def _task(name: str, info: dict[str, Any], kinds: Sequence[str], max_requests: int, system: str) -> Task:
    shop, rng = Shop(_shop_of(info)), random.Random(derive_seed(info["seed"], "requests"))
    asked, steps = list[str](), list[Call]()
    for customer_id in rng.sample(list(shop.state["customers"]), rng.randint(1, max_requests)):
        sentence, calls_of = rng.choice([_WANTS[kind] for kind in kinds])(shop, customer_id, rng)
        asked.append(sentence)
        steps += calls_of
        _run(shop, *calls_of[-1])
    return Task.ask(name, " ".join(asked), shop.state, system=system, **info, steps=[list(step) for step in steps])


def _wants_order(shop: Shop, customer_id: str, rng: random.Random) -> tuple[str, list[Call]]:
    customer, product_id = shop.state["customers"][customer_id], rng.choice(list(shop.state["products"]))
    product = shop.state["products"][product_id]
    most = min(product["stock"], customer["credit"] // product["price"])
    if most < 1:
        return _wants_credit(shop, customer_id, rng)
    quantity = rng.randint(1, min(most, 5))
    sentence = f"{customer['name']} wants to order {quantity} of the product '{product['name']}'."
    return sentence, _ordering(customer, customer_id, product, product_id, quantity)


def _wants_most(shop: Shop, customer_id: str, rng: random.Random) -> tuple[str, list[Call]]:
    customer, product_id = shop.state["customers"][customer_id], rng.choice(list(shop.state["products"]))
    product = shop.state["products"][product_id]
    most = min(product["stock"], customer["credit"] // product["price"])
    if most < 1:
        return _wants_credit(shop, customer_id, rng)
    sentence = (
        f"{customer['name']} wants as many of the product '{product['name']}' as credit and stock allow, in one order."
    )
    return sentence, _ordering(customer, customer_id, product, product_id, most)


def _ordering(customer: State, customer_id: str, product: State, product_id: str, quantity: int) -> list[Call]:
    order = {"customer_id": customer_id, "product_id": product_id, "quantity": quantity}
    looked_up: list[Call] = [
        ("find_customers", {"name": customer["name"]}),
        ("find_products", {"name": product["name"]}),
    ]
    return [*looked_up, ("place_order", order)]


def _wants_cancelled(shop: Shop, customer_id: str, rng: random.Random) -> tuple[str, list[Call]]:
    name = shop.state["customers"][customer_id]["name"]
    order_id = next(order["id"] for order in shop.orders(customer_id) if order["status"] == "open")
    calls_of: list[Call] = [("find_customers", {"name": name}), ("list_orders", {"customer_id": customer_id})]
    return f"Cancel the open order of {name}.", [*calls_of, ("cancel_order", {"order_id": order_id})]


def _wants_credit(shop: Shop, customer_id: str, rng: random.Random) -> tuple[str, list[Call]]:
    name, amount = shop.state["customers"][customer_id]["name"], rng.randint(5, 50)
    calls_of: list[Call] = [("find_customers", {"name": name})]
    return f"Add {amount} to the credit of {name}.", [
        *calls_of,
        ("add_credit", {"customer_id": customer_id, "amount": amount}),
    ]


# An order that cannot be made is a wish for credit; the order of the kinds decides the tasks.
_WANTS = {"order": _wants_order, "most": _wants_most, "cancel": _wants_cancelled, "credit": _wants_credit}


def _run(shop: Shop, name: str, arguments: Mapping[str, Any]) -> str:
    calls_by_name: Mapping[str, Callable[..., Any]] = {
        "find_customers": lambda name: shop.find("customers", name),
        "find_products": lambda name: shop.find("products", name),
        "list_orders": shop.orders,
        "place_order": shop.order,
        "cancel_order": shop.cancel,
        "add_credit": shop.credit,
    }
    return _answer(lambda: calls_by_name[name](**arguments))


def demonstrate(task: Task, sample: int) -> list[Message]:
    """Looks up what a request names, then does it, one call a turn; every other time by the first name alone."""
    shop, brief = Shop(_shop_of(task.info)), (task.info["seed"] + sample) % 2 == 1
    messages: list[Message] = []
    for number, (name, told) in enumerate(task.info["steps"]):
        arguments = {"name": told["name"].split()[0]} if brief and name == "find_customers" else told
        messages.append(tool_call(name, json.dumps(arguments), f"call_{number}"))
        result = _run(shop, name, arguments)
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
    return float(state.shop.state == _shop_of(info))


def calls(messages: Sequence[Message]) -> float:
    """How many tools were called."""
    return float(sum(message["role"] == "tool" for message in messages))


def failed_calls(messages: Sequence[Message]) -> float:
    """How many calls were refused, or did not fit."""
    return float(sum(m["role"] == "tool" and (m["content"] or "").startswith("Error: ") for m in messages))
