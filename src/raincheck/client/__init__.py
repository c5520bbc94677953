"""The other side of the wire: clients that follow a 202 to the response it stands for.

Works with httpx2 and with httpx, and with any server that answers 202 with a status URL.
"""

from raincheck.client.errors import DeadlineExceeded, FollowError, NoResponse, Unreachable
from raincheck.client.flow import Following
from raincheck.client.handles import RemoteJob, SyncRemoteJob, submit, submit_sync
from raincheck.client.transport import Transports, follow

__all__ = [
    "DeadlineExceeded",
    "follow",
    "FollowError",
    "Following",
    "NoResponse",
    "RemoteJob",
    "submit",
    "submit_sync",
    "SyncRemoteJob",
    "Transports",
    "Unreachable",
]
