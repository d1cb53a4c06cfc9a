"""What customers ask for, and the calls that do it."""

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from .shop import Shop

Call = tuple[str, dict[str, Any]]
"""A tool's name and its arguments."""
Request = tuple[str, list[Call]]
"""What is asked, and the calls that do it; only the last one changes the shop."""


def _wants_order(shop: Shop, customer_id: str, rng: random.Random, *, most: bool) -> Request:
    """Some of a product, or as many as credit and stock allow; who can have none wants credit."""
    customer, product_id = shop.state["customers"][customer_id], rng.choice(list(shop.state["products"]))
    product = shop.state["products"][product_id]
    allowed = min(product["stock"], customer["credit"] // product["price"])
    if allowed < 1:
        return _wants_credit(shop, customer_id, rng)
    quantity = allowed if most else rng.randint(1, min(allowed, 5))
    of_it = f"of the product '{product['name']}'"
    wish = f"as many {of_it} as credit and stock allow, in one order" if most else f"to order {quantity} {of_it}"
    return f"{customer['name']} wants {wish}.", [
        ("find_customers", {"name": customer["name"]}),
        ("find_products", {"name": product["name"]}),
        ("place_order", {"customer_id": customer_id, "product_id": product_id, "quantity": quantity}),
    ]


def _wants_cancelled(shop: Shop, customer_id: str, rng: random.Random) -> Request:
    name = shop.state["customers"][customer_id]["name"]
    order_id = next(order["id"] for order in shop.orders(customer_id) if order["status"] == "open")
    calls_of: list[Call] = [("find_customers", {"name": name}), ("list_orders", {"customer_id": customer_id})]
    return f"Cancel the open order of {name}.", [*calls_of, ("cancel_order", {"order_id": order_id})]


def _wants_credit(shop: Shop, customer_id: str, rng: random.Random) -> Request:
    name, amount = shop.state["customers"][customer_id]["name"], rng.randint(5, 50)
    calls_of: list[Call] = [("find_customers", {"name": name})]
    return f"Add {amount} to the credit of {name}.", [
        *calls_of,
        ("add_credit", {"customer_id": customer_id, "amount": amount}),
    ]


# The order of the kinds decides the tasks.
KINDS: Mapping[str, Callable[[Shop, str, random.Random], Request]] = {
    "order": partial(_wants_order, most=False),
    "most": partial(_wants_order, most=True),
    "cancel": _wants_cancelled,
    "credit": _wants_credit,
}
