"""The fixtures of the tests that pull models."""

from tests.support.hub_fixtures import hub, large, models, server, split

__all__ = ["hub", "large", "models", "server", "split"]
