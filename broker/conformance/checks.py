"""The base of all themes: fixtures, and what happens to a check that is declared impossible."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from .bench import GROUP, Bench, unique_name
from .harness import Claim, Harness
from .plugin import IMPOSSIBLE, SUITE


class Checks:
    """Fixtures that every theme shares; the subclass that is run has its own ``harness``."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self) -> str:
        """The event loop that the package is written for."""
        return "asyncio"

    @pytest.fixture
    def harness(self) -> Harness:
        """The backend under test."""
        pytest.fail(
            f"{type(self).__name__} needs a fixture `harness` that returns a broker.conformance.Harness"
        )

    @pytest.fixture(autouse=True)
    async def declared_possible(self, request: pytest.FixtureRequest, harness: Harness) -> None:
        """Skip a check that is declared impossible; fail where the declaration and the claims disagree.

        With ``--conformance-verify`` it is run, and has to fail.
        """
        name = request.function.__name__.removeprefix("test_")
        reason = harness.impossible.get(name)
        request.node.user_properties.append((SUITE, request.node.nodeid.rpartition("::")[0]))
        claim: Claim | None = getattr(request.function, "claim", None)
        if claim is not None:
            async with harness.connect() as broker:
                claimed = claim.holds(broker.capabilities)
            if claimed and reason is not None:
                pytest.fail(f"{name} is declared impossible, but the capabilities claim {claim.text}")
            if not claimed and reason is None:
                pytest.fail(f"the capabilities deny {claim.text}: declare {name} impossible, with the reason")
        if reason is not None:
            request.node.user_properties.append((IMPOSSIBLE, reason))
            if not request.config.getoption("conformance_verify"):
                pytest.skip(reason)
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    @pytest.fixture
    async def bench(self, harness: Harness) -> AsyncIterator[Bench]:
        """An open client and a new topic with the group ``GROUP``."""
        async with harness.connect() as broker:
            topic = unique_name()
            await broker.ensure(topic, group=GROUP, partitions=harness.partitions)
            yield Bench(harness, broker, topic)
