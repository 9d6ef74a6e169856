"""The JSON of the REST interface about time: what the rack and its sleds hold for it, and an operator's word."""

from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, Field

from head_node.api.models import Body


class TimeRequest(Body):
    now_ms: Annotated[
        int,
        Field(
            strict=True,
            ge=0,
            lt=1 << 53,
            description="the operator's clock, Unix milliseconds: within a minute of ours",
        ),
    ]


class SledTimeDocument(BaseModel):
    sled: UUID
    name: str
    time_ms: Annotated[int | None, Field(description="sled time when it was asked; null when it was not reached")]
    pending: Annotated[bool, Field(description="it has still to take the last statement of time")]
    result: Annotated[str, Field(description="`taken`, or why the sled could not be asked or told")]


class TimeDocument(BaseModel):
    clock_ms: Annotated[int, Field(description="the clock of the authority's machine, Unix milliseconds")]
    issue_ms: Annotated[int, Field(description="what credentials are issued at now: never behind the clock")]
    serial: Annotated[int, Field(description="of the last statement of time; 0: none was ever made")]
    sleds: list[SledTimeDocument]
