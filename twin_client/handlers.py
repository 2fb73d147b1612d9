"""What the agent does for each command of a twin."""

from typing import TYPE_CHECKING

import msgspec

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
from twin_client.protocol.rules import Calibrations, SensorCalibration, calibrations_of
from twin_client.services import folder as disk
from twin_client.services.execution import Done, Handler, Refused

if TYPE_CHECKING:
    from twin_client.agent import Agent

_json = msgspec.json.Encoder().encode


class _Kept(msgspec.Struct):
    """Sensor calibrations that came as commands, as the judgement keeps them."""

    curves: Calibrations = {}


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
        agent = self._agent
        judge = agent.judge.paired(agent.pairing.tags) if self._in_force(order) else agent.judge.calibrated_by(order)
        await agent.rejudge(judge)
        return f"{order.quantity} of {order.tag} is read by the new curve"

    def _in_force(self, order: SetSensorCalibration) -> bool:
        """Whether this very curve is the newest that there is, of the site's and of those that came as commands."""
        try:
            wanted = msgspec.convert(order.calibration, SensorCalibration)
        except msgspec.ValidationError:
            return False  # which is for the judgement to say
        kept = disk.load_state(self._agent.folder / "calibrations.json", _Kept) or _Kept()
        both = (calibrations_of(self._agent.site.calibrations), kept.curves)
        there = [curves[order.quantity] for found in both if order.quantity in (curves := found.get(order.tag, {}))]
        newest = max(there, key=lambda curve: curve.version, default=None)
        return _json(newest) == _json(wanted)  # as it is kept, which has no infinity

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
