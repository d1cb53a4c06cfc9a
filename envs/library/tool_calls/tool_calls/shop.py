"""A shop: its state, what can be done in it, and how one begins."""

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from envs import derive_seed

State = dict[str, Any]


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


def answer(do: Callable[[], Any]) -> str:
    """What a tool returns: in JSON what was done or found, or why not."""
    try:
        return json.dumps(do())
    except Refused as reason:
        return f"Error: {reason}."


def call(shop: Shop, name: str, arguments: Mapping[str, Any]) -> str:
    """What the tool of this name returns."""
    methods: Mapping[str, Callable[..., Any]] = {
        "find_customers": lambda name: shop.find("customers", name),
        "find_products": lambda name: shop.find("products", name),
        "list_orders": shop.orders,
        "place_order": shop.order,
        "cancel_order": shop.cancel,
        "add_credit": shop.credit,
    }
    return answer(lambda: methods[name](**arguments))


# How a shop begins

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


def shop_of(info: Mapping[str, Any]) -> Shop:
    """The shop of a task, as it begins."""
    return Shop(make_shop(info["seed"], info["split"], invented=info["invented"]))
