"""What the agent does for each command of a twin."""

from typing import TYPE_CHECKING

from twin_client.pairing import Tag, misspelt
from twin_client.protocol import orders
from twin_client.protocol.orders import (
    CaptureNow,
    Desired,
    PairTag,
    Reconfigure,
    Restart,
    SendDiagnostics,
    SetSensorCalibration,
    UnpairTag,
    UpdateModel,
)
from twin_client.services.execution import Done, Handler, Refused

if TYPE_CHECKING:
    from twin_client.agent import Agent


class Handlers:
    """One method for each order, by its name.

    Those that are `repeatable` may be called again after the agent died in them: what is so already is done.
    """

    def __init__(self, agent: "Agent"):
        self._agent = agent

    def by_name(self) -> dict[str, Handler]:
        """The orders that this gateway knows."""
        return {name: getattr(self, name) for name in orders.ORDERS}

    async def capture_now(self, order: CaptureNow) -> str:
        """Take and judge an image."""
        return await self._agent.cameras.capture(order.camera)

    async def pair_tag(self, order: PairTag) -> str:
        """Take records of a tag."""
        if why := misspelt(order.type):
            raise Refused(why)
        self._agent.pairing.pair(order.tag, Tag(order.type, order.note))
        await self._agent.pair()
        return f"{order.tag} is paired"

    async def unpair_tag(self, order: UnpairTag) -> str:
        """Take no more of them."""
        pairing = self._agent.pairing
        pairing.look()
        paired = order.tag in pairing.tags
        if paired:
            pairing.unpair(order.tag)
        await self._agent.pair()
        return f"{order.tag} is not paired{' any more' if paired else ''}"

    async def set_sensor_calibration(self, order: SetSensorCalibration) -> str:
        """Read a quantity by another curve."""
        await self._agent.rejudge(self._agent.judge.calibrated_by(order))
        return f"{order.quantity} of {order.tag} is read by the new curve"

    async def send_diagnostics(self, order: SendDiagnostics) -> Done:
        """Say how the gateway fares, in the answer and as a health record."""
        health = await self._agent.reporter.health()
        await self._agent.pipeline.put([health])
        return Done(self._agent.reporter.line(), health.gauges)

    async def update_model(self, order: UpdateModel) -> Done:
        """Fetch, prove and switch to an artifact."""
        return await self._agent.update.run(order)

    async def restart(self, order: Restart) -> str:
        """End; the system starts the agent again."""
        self._agent.stopping.set()
        return "the agent ends"

    async def reconfigure(self, order: Reconfigure) -> str:
        """The desired state, for a twin that can send commands only."""
        desired = Desired(orders.VERSION, self._agent.settings.gateway, order.number, order.settings)
        reported = self._agent.configuration.desire(desired)
        if reported.refused is not None and reported.refused.number == order.number:
            raise Refused(reported.refused.why)
        return f"configuration {reported.number} is in force" + (", on trial" if reported.trial else "")
