"""What `RedisStore` needs of the user that it is on the server, and whether that may do it."""

from __future__ import annotations

import re

from raincheck.stores._redis_listing import LIST, TOTALS
from raincheck.stores._redis_scripts import (
    ABANDONED,
    APPEND,
    CLAIM,
    CREATE,
    DELIVERIES,
    DROP,
    FETCH,
    FIND,
    JOIN,
    LEARN,
    PARTIAL,
    READ,
    RECORD,
    RENEW,
    REPLACE,
    REQUEST,
    SWEEP,
    TURN_TO,
    Script,
)

# Whether the server is new enough, what it says if the keys or the channel are not its user's, the
# commands that are not, and the keys that are another application's. It has no keys of its own, or
# it would not run without a right to them; nor the first line of the others, which servers that are
# too old do not know.
CHECK = Script(
    None,
    """
local job, channel, count = unpack(ARGV)
local denied, theirs = {}, {}
for i = 4 + count, #ARGV do
  local command = ARGV[i]
  local words = {command, job, job}
  if command == 'PUBLISH' or command == 'SUBSCRIBE' then words = {command, channel, channel} end
  if command == 'EVAL' or command == 'EVALSHA' then words = {command, 'x', '1', job} end
  if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(words)) then
    denied[#denied + 1] = command
  end
end
for i = 4, 3 + count, 2 do
  local kind, key = ARGV[i], ARGV[i + 1]
  local found = redis.pcall('TYPE', key).ok
  if found and found ~= 'none' and found ~= kind then theirs[#theirs + 1] = key end
end
local of_keys, of_channel = redis.pcall('TYPE', job).err, redis.pcall('PUBLISH', channel, '')
of_channel = type(of_channel) == 'table' and of_channel.err
return {redis.acl_check_cmd and 1 or 0, of_keys or '', of_channel or '', denied, theirs}
""",
)

_SCRIPTS = (
    *(CREATE, FIND, LEARN, REPLACE, JOIN, APPEND, READ, RENEW, ABANDONED, SWEEP, RECORD, DROP),
    *(CLAIM, FETCH, REQUEST, PARTIAL, LIST, TOTALS, DELIVERIES, TURN_TO),
)

COMMANDS = sorted(
    {"EVAL", "EVALSHA", "GET", "PING", "SUBSCRIBE"}.union(
        *(re.findall(r"(?:call\(|read\('[a-z]+', )'([A-Z]+)'", script.text) for script in _SCRIPTS)
    )
)
"""All that the store asks of a server, but for what connecting takes."""


def rights(denied: list[bytes], prefix: str, of_keys: bytes, of_channel: bytes) -> list[str]:
    """What a user lacks that `CHECK` has found, as `ACL SETUSER` takes it.

    Args:
        denied: commands.
        prefix: of the keys and the channel.
        of_keys: what the server says to one that has a key of the store.
        of_channel: what it says to one that has its channel.
    """
    missing = []
    commands = {command.decode().lower() for command in denied}
    if b"permission" in of_keys and b"key" in of_keys:  # it denies every command that has one
        missing.append(f"~{prefix}*")
        commands &= {"ping", "publish", "subscribe", "time"}
    if b"channel" in of_channel:
        missing.append(f"&{prefix}*")
        commands -= {"publish", "subscribe"}
    return [*missing, *(f"+{command}" for command in sorted(commands))]
