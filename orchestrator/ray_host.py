"""A host as the campaign's own process sees it: where it is, what it has been told, and what it has not said yet."""

from __future__ import annotations

__all__ = ["RayHost"]

from dataclasses import dataclass, field
from typing import Any

import ray

from .host import Order


@dataclass(eq=False)
class RayHost:
    """See the module.

    Attributes:
        actor: The host itself.
        node: Where it is.
        width: Its slots.
        since: When it was asked for.
        starting: Its answer once it is ready, None since then.
        worker: What it calls itself.
        pulse: Its next answer, None where nobody listens.
        heard: How long anybody had listened when it last spoke.
        tasks: What it has, in the order of coming.
        alone: Those that run alone: they occupy all its slots.
        load: Slots that its tasks need.
        outbox: Tasks that it has not been told of yet.
        withdrawing: Its answer to what it was asked to give back.
        recalls: Whether it may have tasks that shall not start any more.
    """

    actor: Any
    node: str
    width: int
    since: float
    starting: ray.ObjectRef[Any] | None
    worker: str = ""
    pulse: ray.ObjectRef[Any] | None = None
    heard: float = 0.0
    tasks: dict[int, Order] = field(default_factory=dict)
    alone: set[int] = field(default_factory=set)
    load: int = 0
    outbox: list[Order] = field(default_factory=list)
    withdrawing: ray.ObjectRef[Any] | None = None
    recalls: bool = False

    def add(self, order: Order) -> None:
        """One more task, of which it is told when it is spoken to next."""
        self.tasks[order.number] = order
        self.load += order.share
        self.outbox.append(order)

    def remove(self, number: int) -> Order:
        """A task that it does not have any more."""
        order = self.tasks.pop(number)
        self.load -= order.share
        self.alone.discard(number)
        return order

    def speak(self) -> None:
        """Sends what is in the outbox, and listens if nobody does."""
        if self.starting is not None:
            return
        orders, self.outbox = self.outbox, []
        if self.pulse is None:
            self.pulse = self.actor.collect.remote(orders)
        elif orders:
            self.actor.submit.remote(orders)
