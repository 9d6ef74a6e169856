"""Who may use which route: each states it in one line, and one that states nothing keeps the authority from starting.

`dependencies=[VIEWER]` (OPERATOR, ADMIN) behind a route's path names the least role of an operator; routes of heads
take the signing head; PUBLIC and NEWCOMER routes say so. The document repeats it as `x-access`.
"""

from typing import Any, Final

from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from head_node.api.heads import authority_of, newcomer, signing_head, source_of
from head_node.authority.audit import Actor, asks
from head_node.authority.operator_tokens import Role

HEAD: Final = "head"
PUBLIC_ACCESS: Final = "public"
NEWCOMER_ACCESS: Final = "newcomer"


class Needs:
    """A dependency: the request carries a live operator token of at least this role."""

    def __init__(self, role: Role) -> None:
        self.role = role

    async def __call__(self, request: Request) -> None:
        token = await authority_of(request).tokens.holder(request.headers.get("authorization"))
        asks(Actor(token.actor, source_of(request)))
        request.state.authenticated = True  # from now on its connection is no stranger's (connections.py)
        token.check(self.role)


async def public() -> None:
    """A dependency that says: anybody may ask this, and learns nothing of the rack."""


VIEWER: Final = Depends(Needs(Role.VIEWER))
OPERATOR: Final = Depends(Needs(Role.OPERATOR))
ADMIN: Final = Depends(Needs(Role.ADMIN))
PUBLIC: Final = Depends(public)
BEARER: Final = Depends(HTTPBearer(auto_error=False, scheme_name="operator", description="an operator's token"))
"""For the document only; `Needs` judges the header."""


def access_of(route: APIRoute) -> str:
    """What a route states. Raises ValueError when it states nothing, or more than one thing."""
    calls = [dependency.call for dependency in route.dependant.dependencies]
    found = [call.role.value for call in calls if isinstance(call, Needs)]
    found += [HEAD for call in calls if call is signing_head]
    found += [NEWCOMER_ACCESS for call in calls if call is newcomer]
    found += [PUBLIC_ACCESS for call in calls if call is public]
    if len(found) != 1:
        raise ValueError(
            f"{'/'.join(sorted(route.methods or ()))} {route.path} states {found or 'nothing'}: give it one of"
            " dependencies=[VIEWER], [OPERATOR], [ADMIN], [PUBLIC], or the signing head"
        )
    return found[0]


def state_access(router: APIRouter) -> None:
    """Check every route, and say in the document what it takes. Raises ValueError."""
    for route in router.routes:
        if isinstance(route, APIRoute):
            extra: dict[str, Any] = route.openapi_extra or {}
            route.openapi_extra = {**extra, "x-access": access_of(route)}
