"""The JSON of operators' tokens and of the audit trail."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from head_node.api.models import Body, Name
from head_node.authority.operator_tokens import Role

# A year: who still needs it makes another one in time.
OPERATOR_TERM_S_MAX = 366 * 86400


class OperatorTokenRequest(Body):
    name: Name
    role: Annotated[Role, Field(description="each role may do what those before it may: viewer, operator, admin")]
    valid_s: Annotated[
        int, Field(strict=True, ge=1, le=OPERATOR_TERM_S_MAX, description="seconds until it expires")
    ] = 90 * 86400


class OperatorTokenStatus(BaseModel):
    id: Annotated[str, Field(description="the first digits of its hash; the audit trail names it")]
    name: str
    role: Role
    created_ms: int
    created_by: str
    expires_ms: Annotated[int | None, Field(description="null for the bootstrap token only")]


class OperatorTokenDocument(OperatorTokenStatus):
    token: Annotated[str, Field(description="shown only here; the authority keeps a hash")]


class OperatorTokenList(BaseModel):
    tokens: list[OperatorTokenStatus]


class AuditLine(BaseModel):
    """Who did what, from where, and what came of it."""

    sequence: Annotated[int, Field(description="rises; lines that went, because an actor caused many, leave gaps")]
    time_ms: int
    actor: Annotated[str, Field(description="token:NAME:ID, head:ID, or the authority itself")]
    source: Annotated[str, Field(description="address and port that the request came from; empty for the authority")]
    action: Annotated[str, Field(description="the operation that was asked for, or the event that followed")]
    target: Annotated[str, Field(description="path of the request, or the volume of the event")]
    result: Annotated[str, Field(description="status of the answer; empty for an event")]
    details: dict[str, Any]


class AuditPage(BaseModel):
    lines: list[AuditLine]
