"""Has this process load what a lean node has loaded while it waits for work; no server is asked.

``mest_fed.devices.calibration`` measures it, in a process of its own.
"""

from contextlib import suppress

from mest_fed.link import mest_link_pb2 as pb
from mest_fed.link.node.channel import Channel, Patience
from mest_fed.link.node.warm_up import warm_up
from mest_fed.link.protocol import Refusal

#: Nobody listens there: it is the discard port, which needs rights.
_NOBODY = "127.0.0.1:9"


def wait_for_nobody() -> None:
    """Load what the first call and the first round load."""
    warm_up()
    channel = Channel(_NOBODY, "nobody", tls=None, patience=Patience(altogether=0.0))
    with suppress(Refusal):
        channel.unary("Heartbeat", pb.HeartbeatRequest(), seconds=1.0)
