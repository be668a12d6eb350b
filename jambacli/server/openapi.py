"""stub"""

from starlette.routing import Route


def openapi_routes(routes: list[Route]) -> list[Route]:
    return []
