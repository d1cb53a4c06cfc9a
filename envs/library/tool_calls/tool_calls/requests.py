"""What customers ask for, and the calls that do it."""

import random
from collections.abc import Callable, Mapping
from typing import Any

from .shop import Shop, State

Call = tuple[str, dict[str, Any]]
"""A tool's name and its arguments."""
Request = tuple[str, list[Call]]
"""What is asked, and the calls that do it; only the last one changes the shop."""


def _wants_order(shop: Shop, customer_id: str, rng: random.Random) -> Request:
    customer, product_id = shop.state["customers"][customer_id], rng.choice(list(shop.state["products"]))
    product = shop.state["products"][product_id]
    most = min(product["stock"], customer["credit"] // product["price"])
    if most < 1:
        return _wants_credit(shop, customer_id, rng)
    quantity = rng.randint(1, min(most, 5))
    sentence = f"{customer['name']} wants to order {quantity} of the product '{product['name']}'."
    return sentence, _ordering(customer, customer_id, product, product_id, quantity)


def _wants_most(shop: Shop, customer_id: str, rng: random.Random) -> Request:
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


# An order that cannot be made is a wish for credit; the order of the kinds decides the tasks.
KINDS: Mapping[str, Callable[[Shop, str, random.Random], Request]] = {
    "order": _wants_order,
    "most": _wants_most,
    "cancel": _wants_cancelled,
    "credit": _wants_credit,
}
