"""What `RedisStore` asks the server in one go: the scripts, and the words that they are told.

The keys are listed in `stores/redis.py`.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from hashlib import sha1

from raincheck.errors import NoRoom
from raincheck.job import Bounds, Job, Key

WINDOW = 256 * 1024
"""Bytes of a response body that are kept under one key, and read at once."""

DAY = 24 * 60 * 60
"""Seconds that the server keeps what was due and nobody has swept."""


def stage(job: Job) -> str:
    """The state of a job that is unfinished; else that it is finished, or gone."""
    return "gone" if job.gone else "finished" if job.finished else str(job.state)


def due(job: Job) -> float:
    """When `sweep` turns to it."""
    at = job.purge_at if job.gone else job.expires_at
    return math.inf if at is None else at


def keep(job: Job) -> str | int:
    """Seconds until the server itself drops what nobody has swept; its clock may be any."""
    since = job.expires_at if job.gone else job.finished_at
    if since is None or job.purge_at is None:
        return ""
    return int(min(max(0.0, job.purge_at - since), 1e10)) + DAY


def place(job: Job) -> tuple[str, str]:
    """Its route and its owner as they stand in `busy`: no name is mistaken for a longer one."""
    owner = "-" if job.owner is None else f"{len(job.owner)}:{job.owner}"
    return f"{len(job.route)}:{job.route}", owner


def most(job: Job, bounds: Bounds | None, keys: Collection[Key]) -> tuple[str | int, ...]:
    """What `no_room` compares with, and the marks of keys; most calls have neither."""
    if bounds is None and not keys:
        return ()
    route = None if bounds is None else bounds.route
    owner = None if bounds is None or job.owner is None else bounds.owner
    return "" if route is None else route, "" if owner is None else owner, *map(mark, keys)


def mark(key: Key) -> str:
    """What is kept of a key besides whose it is."""
    return f"{key.lasting:d}" + ("" if key.fingerprint is None else f"={key.fingerprint}")


def fingerprint(mark: bytes) -> str | None:
    """The fingerprint in a mark."""
    return mark[2:].decode("utf-8", "surrogatepass") if len(mark) > 1 else None


def check_room(answer: object) -> None:
    """Raise what `no_room` has found; no other answer is a list."""
    if isinstance(answer, list):
        raise NoRoom(owner=answer == [b"owner"])


# --- the scripts -----------------------------------------------------------------------------


class Script:
    """A script in Lua, and the digest that the server calls it by once it knows it.

    Args:
        flags: in its first line.
        text: the rest.
        repeatable: whether the second of two answers is as good as the first, of which nobody
            heard.
    """

    def __init__(self, flags: str, text: str, *, repeatable: bool = True) -> None:
        self.repeatable = repeatable
        self.text = f"#!lua {flags}".rstrip() + f"\nlocal WINDOW = {WINDOW}\n{_COMMON}{text}"
        self.digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_COMMON = """
local call = redis.call

local function clock()
  local time = call('TIME')
  return time[1] + time[2] / 1000000
end

local function unfinished(stage)
  return stage and stage ~= 'finished' and stage ~= 'gone'
end

-- With what an unfinished job begins in `busy`, before its route, its owner and its id.
local function grouped(stage)
  return stage == 'queued' and 'waiting ' or unfinished(stage) and 'running '
end

local function as_many(busy, alike, bound)
  if not bound or bound == '' then return false end
  return call('ZLEXCOUNT', busy, '[' .. alike, '(' .. alike .. '\\255') >= tonumber(bound)
end

-- Which bound keeps another job out of a group; '\\255' is in no UTF-8.
local function no_room(busy, group, route, owner, of_route, of_owner)
  if as_many(busy, group .. route .. owner, of_owner) then return {'owner'} end
  if as_many(busy, group .. route, of_route) then return {'route'} end
end

local function append(body, size, chunk)
  local first = 1
  while first <= #chunk do
    local last = first + WINDOW - size % WINDOW - 1
    local piece = string.sub(chunk, first, last)
    call('APPEND', body .. ':' .. math.floor(size / WINDOW), piece)
    size, first = size + #piece, last + 1
  end
  return size
end

-- Give a job the keys that `KEYS` has from `first` on; `ARGV` has their marks, as many places
-- after `before`.
local function give(job, id, keys, passing, first, before)
  if #KEYS >= first then call('HSET', job, 'keyed', 1) end
  for i = first, #KEYS do
    local mark = ARGV[before + i - first + 1]
    call('HSET', KEYS[i], 'id', id, 'mark', mark)
    call('SADD', string.sub(mark, 1, 1) == '1' and keys or passing, KEYS[i])
  end
end

local function free(id, keys)
  for _, key in ipairs(call('SMEMBERS', keys)) do
    if call('HGET', key, 'id') == id then call('UNLINK', key) end
  end
  call('UNLINK', keys)
end

local function windows(body, size)
  local keys = {}
  for start = 0, size - 1, WINDOW do keys[#keys + 1] = body .. ':' .. start / WINDOW end
  return keys
end
"""

# Without allow-oom: the one that a full server refuses.
CREATE = Script(
    "",
    """
local job, request, _, due, leases, busy, keys, passing = unpack(KEYS, 1, 8)
local jobs, id, record, version, attempt, stage, captured, lease, score = unpack(ARGV, 1, 9)
local route, owner, of_route, of_owner = unpack(ARGV, 10)
local there = call('HGET', job, 'record')
for i = 9, #KEYS do
  local other = not there and call('HGET', KEYS[i], 'id')
  there = there or other and call('HGET', jobs .. other, 'record')
end
if there then return there end
local group = grouped(stage)
local full = group and no_room(busy, group, route, owner, of_route, of_owner)
if full then return full end
call('HSET', job, 'record', record, 'version', version, 'attempt', attempt, 'stage', stage,
  'size', 0)
give(job, id, keys, passing, 9, 13)
if captured ~= '' then call('SET', request, captured) end
if lease ~= '' and unfinished(stage) then call('ZADD', leases, clock() + lease, id) end
if group then call('ZADD', busy, 0, group .. route .. owner .. id) end
call('ZADD', due, score, id)
return false
""",
)

FIND = Script(
    "flags=no-writes",
    """
local key = call('HMGET', KEYS[1], 'id', 'mark')
local record = key[1] and call('HGET', ARGV[1] .. key[1], 'record')
return record and {record, key[2]}
""",
)

LEARN = Script("flags=allow-oom", "call('SADD', KEYS[1], unpack(ARGV))")

_REPLACING = """
local job, request, body, due, leases, busy, keys, passing = unpack(KEYS, 1, 8)
local channel, id, before, record, version, attempt, stage = unpack(ARGV, 1, 7)
local replayable, tail, lease, score, keep = unpack(ARGV, 8, 12)
local route, owner, of_route, of_owner = unpack(ARGV, 13)
local old = call('HMGET', job, 'version', 'attempt', 'size', 'stage', 'keyed')
if old[1] ~= before then return 0 end
for i = 9, #KEYS do
  if call('EXISTS', KEYS[i]) == 1 then return 0 end
end

local left, group = grouped(old[4]), grouped(stage)
if left ~= group then
  local full = group and no_room(busy, group, route, owner, of_route, of_owner)
  if full then return full end
  if left then call('ZREM', busy, left .. route .. owner .. id) end
  if group then call('ZADD', busy, 0, group .. route .. owner .. id) end
end

local size = tonumber(old[3])
if size > 0 and (old[2] ~= attempt or stage == 'gone') then
  for _, key in ipairs(windows(body, size)) do call('UNLINK', key) end
  size = 0
end
size = append(body, size, tail)
call('HSET', job, 'record', record, 'version', version, 'attempt', attempt, 'stage', stage,
  'size', size)
if replayable == '0' then call('UNLINK', request) end

local keyed = old[5]
if keyed and stage ~= 'queued' and stage ~= 'running' then free(id, passing) end
if keyed and stage == 'gone' then free(id, keys) end
give(job, id, keys, passing, 9, 16)

if not unfinished(stage) then
  call('ZREM', leases, id)
  call('ZADD', due, score, id)
elseif lease ~= '' then
  call('ZADD', leases, clock() + lease, id)
end
if keep ~= '' then
  call('EXPIRE', job, keep)
  if keyed then call('EXPIRE', keys, keep) end
  for _, key in ipairs(keyed and call('SMEMBERS', keys) or {}) do call('EXPIRE', key, keep) end
  for _, key in ipairs(windows(body, size)) do call('EXPIRE', key, keep) end
end
call('PUBLISH', channel, id)
return 1
"""

# Not repeatable: it would find its own version, and say that it was not the next one.
REPLACE = Script("flags=allow-oom", _REPLACING, repeatable=False)

# With keys, for which a full server has no room.
JOIN = Script("", _REPLACING, repeatable=False)

APPEND = Script(
    "flags=allow-oom",
    """
local job, body = KEYS[1], KEYS[2]
local attempt, offset, chunk = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local old = call('HMGET', job, 'attempt', 'stage', 'size')
if old[1] ~= attempt or not unfinished(old[2]) then return 0 end
local size = tonumber(old[3])
if offset > size then return false end
call('HSET', job, 'size', append(body, size, string.sub(chunk, size - offset + 1)))
return 1
""",
)

READ = Script(
    "flags=no-writes",
    """
local job = call('HMGET', KEYS[1], 'attempt', 'size')
return {job[1], job[2], call('GETRANGE', KEYS[2], ARGV[1], -1)}
""",
)

RENEW = Script(
    "flags=allow-oom",
    """
local stages = {}
local ends = clock() + ARGV[1]
for i = 2, #KEYS do
  local id, attempt = ARGV[2 * i - 2], ARGV[2 * i - 1]
  local job = call('HMGET', KEYS[i], 'attempt', 'stage')
  stages[i - 1] = job[1] == attempt and unfinished(job[2]) and job[2]
  if stages[i - 1] then call('ZADD', KEYS[1], ends, id) end
end
return stages
""",
)

ABANDONED = Script(
    "flags=no-writes",
    """
local jobs, since, limit = unpack(ARGV)
local now = clock()
local found = call('ZRANGE', KEYS[1], since, now, 'BYSCORE', 'LIMIT', 0, limit, 'WITHSCORES')
local page = {}
for i = 1, #found, 2 do
  page[#page + 1] = {found[i], found[i + 1], call('HGET', jobs .. found[i], 'record')}
end
return {string.format('%.6f', now), page}
""",
)

SWEEP = Script(
    "flags=allow-oom",
    """
local due = KEYS[1]
local jobs, channel, now, skip, limit = unpack(ARGV)
local ids = call('ZRANGE', due, '-inf', now, 'BYSCORE', 'LIMIT', skip, limit)
local expired = {}
for _, id in ipairs(ids) do
  local job = call('HMGET', jobs .. id, 'record', 'stage')
  if job[1] and job[2] ~= 'gone' then
    expired[#expired + 1] = job[1]
  else
    call('UNLINK', jobs .. id)
    call('ZREM', due, id)
    call('PUBLISH', channel, id)
  end
end
return {#ids == tonumber(limit) and 1 or 0, call('ZCARD', due), expired}
""",
)
