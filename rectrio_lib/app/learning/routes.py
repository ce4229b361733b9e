"""The routes by which a collection learns from judgements, and goes back."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from rectrio_lib.app.learning import retrain
from rectrio_lib.app.routes import Governing, Served
from rectrio_lib.app.service import Service

routes = APIRouter()


class Learning(BaseModel):
    """What serves now, and what the last retraining by this service came to."""

    running: bool
    encoder: str
    can_undo: bool = Field(description="Whether there is an encoder to go back to.")
    last: retrain.Verdict | None


class Learner:
    """Retrains one service, once at a time.

    Attributes:
        last: what the last retraining came to.
    """

    def __init__(self, service: Service):
        self.service, self.last = service, None
        self._under_way = asyncio.Lock()

    @property
    def running(self) -> bool:
        """Whether a retraining is under way."""
        return self._under_way.locked()

    async def retrain(self) -> retrain.Verdict:
        """Retrain, and serve the new encoder if it is accepted; HTTPException 409 if that is under way already."""
        async with self._alone():
            self.last = await asyncio.to_thread(retrain.retrain, self.service.now, self.service.engine)
            if self.last.accepted:
                await self.service.reload()
            return self.last

    async def undo(self) -> None:
        """Go back to the encoder before; HTTPException 409 if a retraining is under way."""
        async with self._alone():
            await asyncio.to_thread(retrain.undo, self.service.now)
            await self.service.reload()

    def _alone(self) -> asyncio.Lock:
        if self.running:
            raise HTTPException(409, "A retraining is under way: wait until it has ended.")
        return self._under_way


def _learner(request: Request) -> Learner:
    return request.app.state.learner


Learns = Annotated[Learner, Depends(_learner)]


@routes.get("/retrain", tags=["taste"])
async def state(service: Served, learner: Learns, caller: Governing) -> Learning:
    """Whether a retraining is under way, what the last one came to, and whether it can be undone."""
    made_from = service.now.collection.made_from
    return Learning(
        running=learner.running, encoder=service.now.collection.encoder_name, last=learner.last,
        can_undo=bool(made_from.get(retrain.BEFORE)),
    )  # fmt: skip


@routes.post("/retrain", tags=["taste"])
async def learn(learner: Learns, caller: Governing) -> retrain.Verdict:
    """Learn from all judgements; the new encoder serves if held-out judgements agree with it more often than before.

    The answer comes when it has ended, after some seconds; searches are answered meanwhile.
    """
    return await learner.retrain()


@routes.delete("/retrain", tags=["taste"])
async def undo(service: Served, learner: Learns, caller: Governing) -> Learning:
    """Go back to the encoder before the last retraining."""
    await learner.undo()
    return await state(service, learner, caller)
