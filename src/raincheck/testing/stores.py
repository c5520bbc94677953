"""The contract of stores, whole."""

from __future__ import annotations

from raincheck.testing.bodies import BodyContract
from raincheck.testing.deliveries import DeliveryContract
from raincheck.testing.keys import KeyContract
from raincheck.testing.lives import LifeContract
from raincheck.testing.records import RecordContract


class StoreContract(RecordContract, KeyContract, BodyContract, LifeContract, DeliveryContract):
    """What every store promises. Subclass it, with a fixture `store`."""
