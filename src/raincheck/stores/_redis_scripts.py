"""What `RedisStore` asks the server in one go: the scripts, and the words that they are told.

The keys are listed in `stores/redis.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from hashlib import sha1

from raincheck.errors import NoRoom
from raincheck.job import Bounds, Job, Key
from raincheck.stores.base import SMALL

WINDOW = 256 * 1024
"""Bytes of a response body that are kept under one key, and read at once."""

DAY = 24 * 60 * 60
"""Seconds that the server keeps what was due and nobody has swept."""


def state_of(job: Job) -> str:
    """Its state, or that it is gone."""
    return "gone" if job.gone else str(job.state)


def due(job: Job) -> float:
    """When `sweep` turns to it."""
    return math.inf if job.due_at is None else job.due_at


def times(job: Job) -> tuple[float, str | float]:
    """When it was accepted; and how many seconds it ran, or, of one that waits, when it may."""
    if job.not_before is not None:
        return job.created_at, job.not_before
    if job.started_at is None or job.finished_at is None:
        return job.created_at, ""
    return job.created_at, job.finished_at - job.started_at


def keep(job: Job) -> str | int:
    """Seconds until the server itself drops what nobody has swept; its clock may be any."""
    since = job.expires_at if job.gone else job.finished_at
    if since is None or job.purge_at is None:
        return ""
    return int(min(max(0.0, job.purge_at - since), 1e10)) + DAY


def place(job: Job) -> tuple[str, str]:
    """Its route and its owner as scripts have them: no name is mistaken for a longer one."""
    return named(job.counts_for or None), named(job.owner)


def named(name: str | None) -> str:
    return "-" if name is None else f"{len(name)}:{name}"


def turn(job: Job) -> float | str:
    """When somebody turns to its message."""
    return "" if job.deliver_at is None else job.deliver_at


def most(job: Job, bounds: Bounds | None, keys: Collection[Key]) -> tuple[str | int, ...]:
    """What `no_room` compares with, and the marks of keys; most calls have neither."""
    if bounds is None and not keys:
        return ()
    route = None if bounds is None else bounds.route
    owner = None if bounds is None or job.owner is None else bounds.owner
    stored = None if bounds is None or job.owner is None else bounds.stored
    return *("" if each is None else each for each in (route, owner, stored)), *map(mark, keys)


def mark(key: Key) -> str:
    """What is kept of a key besides whose it is."""
    return f"{key.lasting:d}" + ("" if key.fingerprint is None else f"={key.fingerprint}")


def fingerprint(mark: bytes) -> str | None:
    """The fingerprint in a mark."""
    return mark[2:].decode("utf-8", "surrogatepass") if len(mark) > 1 else None


def check_room(answer: object) -> None:
    """Raise what `no_room` has found; no other answer is a list."""
    if isinstance(answer, list):
        raise NoRoom(owner=answer != [b"route"], stored=answer == [b"stored"])


# --- the scripts -----------------------------------------------------------------------------


class Script:
    """A script in Lua, and the digest that the server calls it by once it knows it.

    The server undoes nothing of one that fails. So all that may fail comes before the first change:
    what is read, the kinds of the keys that are to change (`expect`), and telling of the change,
    which a user may not be allowed to; nobody hears of it before the script has ended.

    Args:
        flags: in its first line.
        text: the rest.
        repeatable: whether the second of two answers is as good as the first, of which nobody
            heard.
    """

    def __init__(self, flags: str | None, text: str, *, repeatable: bool = True) -> None:
        self.repeatable = repeatable
        # What it does not need would cost each of its runs as much as a command.
        for piece in reversed(_COMMON.split("\n\n")):
            if (name := _NAME.search(piece)) and re.search(rf"\b{name[1]}\b", text):
                text = f"{piece}\n{text}"
        first = "" if flags is None else f"#!lua {flags}".rstrip() + "\n"
        self.text = first + text
        self.digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_NAME = re.compile(r"^local (?:function )?(\w+)", re.MULTILINE)

# What scripts share: pieces, each of which needs only earlier ones.
_COMMON = (
    f"local WINDOW = {WINDOW}"
    + """

local call = redis.call

-- Keys under names of ours may be another application's.
local function expect(kind, ...)
  for _, key in ipairs({...}) do
    local found = call('TYPE', key).ok
    if found ~= kind and found ~= 'none' then
      error({err = 'WRONGTYPE ' .. key .. ' is a ' .. found .. ', not a ' .. kind})
    end
  end
end

-- What a command says that begins with a key of this kind; an error that names the key.
local function read(kind, command, key, ...)
  local found = redis.pcall(command, key, ...)
  if type(found) == 'table' and found.err then
    expect(kind, key)
    error(found)
  end
  return found
end

local function number_in(key, value)
  return tonumber(value) or error({err = 'DAMAGED ' .. key .. ' has no number where it had one'})
end

local function clock()
  local time = call('TIME')
  return time[1] + time[2] / 1000000
end

-- A job's state is its stage until it is finished.
local stages = {succeeded = 'finished', failed = 'finished', cancelled = 'finished'}

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

-- The bytes that results of an owner take on a route, all such in one hash.
local function stored_by(listed, whose)
  return tonumber(read('hash', 'HGET', listed .. ':stored', whose) or 0)
end

-- Count those of a job: none once it is gone, whoever has dropped it. Whatever others have put
-- there keeps no job from going on.
local function store(listed, id, whose, bytes)
  local key, own, pcall = listed .. ':stored', '#' .. id, redis.pcall
  local old, had = pcall('HGET', key, own), 0
  if type(old) == 'string' then had, whose = cmsgpack.unpack(old) end
  if bytes == had then return end
  if bytes > 0 then
    pcall('HSET', key, own, cmsgpack.pack(bytes, whose))
  else
    pcall('HDEL', key, own)
  end
  local total = pcall('HINCRBY', key, whose, bytes - had)
  if type(total) == 'number' and total <= 0 then pcall('HDEL', key, whose) end
end

-- The windows of a body that a chunk goes into.
local function touched(body, size, chunk)
  local keys = {}
  if chunk == '' then return keys end
  for window = math.floor(size / WINDOW), math.floor((size + #chunk - 1) / WINDOW) do
    keys[#keys + 1] = body .. ':' .. window
  end
  return keys
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

-- Those keys in a set that are a job's own: others may have taken them since.
local function own(id, keys)
  local own = {}
  for _, key in ipairs(read('set', 'SMEMBERS', keys)) do
    if redis.pcall('HGET', key, 'id') == id then own[#own + 1] = key end
  end
  return own
end

local function unlink(keys)
  for _, key in ipairs(keys) do call('UNLINK', key) end
end

-- The record of a job; a key that is not one, and so has none, is one that nobody can read.
local function record_of(job)
  local record = redis.pcall('HGET', job, 'record')
  return type(record) == 'table' and '' or record
end

local function windows(body, size)
  local keys = {}
  for start = 0, size - 1, WINDOW do keys[#keys + 1] = body .. ':' .. start / WINDOW end
  return keys
end

-- The sets that list the jobs of a group, and its owner's among them.
local function lists(listed, group, owner)
  local all = listed .. ':-' .. group
  if owner == '-' then return {all} end
  return {all, listed .. ':' .. owner .. group}
end

-- The group that a job is in: those of its route and state. It is in none, and not listed, if it is
-- gone or has no route that it counts for.
local function listing(state, route)
  return state ~= 'gone' and route ~= '-' and state .. ' ' .. route
end

-- The seconds that a job ran, if it has ended.
local function took(stage, time)
  return stage == 'finished' and tonumber(time) or nil
end

-- The group that a job is listed in, its owner, and the seconds that it ran, if it has ended;
-- nothing if it is not listed.
local function listed_in(listed, id)
  local entry = redis.pcall('HGET', listed, id)
  if type(entry) == 'string' then return cmsgpack.unpack(entry) end
end

-- Take a job from the sets that list it, as `listed_in` has told, to those of a group; of none
-- (false), to none. Whatever others have put there keeps no job from going on; who asks for a list
-- is told.
local function move(listed, id, was, its, had, group, owner, created, took)
  local totals, pcall = listed .. ':totals', redis.pcall
  if was then
    for _, set in ipairs(lists(listed, was, its)) do pcall('ZREM', set, id) end
    if had then pcall('HINCRBYFLOAT', totals, was, -had) end
  elseif group then
    pcall('HSETNX', totals, group, 0)
  end
  if group then
    for _, set in ipairs(lists(listed, group, owner)) do pcall('ZADD', set, created, id) end
    if took then pcall('HINCRBYFLOAT', totals, group, took) end
    pcall('HSET', listed, id, cmsgpack.pack(group, owner, took))
  elseif was then
    pcall('HDEL', listed, id)
  end
end

local function relist(listed, id, ...)
  local was, its, had = listed_in(listed, id)
  move(listed, id, was, its, had, ...)
end
"""
)

# What of a message is said last, and where it is kept: when somebody turns to it, '' for never; and
# until when one has it, who has it also when its job expires meanwhile.
_EXPECTING = "expect('zset', due .. ':deliveries', leases .. ':deliveries')"
_OWING = """
local turn = ARGV[#ARGV]
if turn == '' then
  call('ZREM', due .. ':deliveries', id)
else
  call('ZADD', due .. ':deliveries', turn, id)
end
if stage ~= 'gone' then call('ZREM', leases .. ':deliveries', id) end
"""

_CREATING = """
local job, request, _, due, leases, busy, listed, keys, passing = unpack(KEYS, 1, 9)
local jobs, id, record, version, fence, state, captured, lease, score = unpack(ARGV, 1, 9)
local created, time, route, owner, of_route, of_owner, of_stored = unpack(ARGV, 10)
local counts = of_stored and of_stored ~= ''
local stage = stages[state] or state
local there = read('hash', 'HGET', job, 'record')
for i = 10, #KEYS do
  local other = not there and read('hash', 'HGET', KEYS[i], 'id')
  there = there or other and read('hash', 'HGET', jobs .. other, 'record')
end
if there then return there end
local group = grouped(stage)
if counts and stored_by(listed, route .. owner) >= tonumber(of_stored) then return {'stored'} end
local full = group and no_room(busy, group, route, owner, of_route, of_owner)
if full then return full end
local counted = group and group .. route .. owner .. id or ''
expect('zset', due, leases, busy)
-- expecting
if #KEYS >= 10 then expect('set', keys, passing) end

call('HSET', job, 'record', record, 'version', version, 'fence', fence, 'stage', stage,
  'size', 0, 'counted', counted)
if stage == 'queued' and time ~= '' then call('HSET', job, 'not_before', time) end
if counts then call('HSET', job, 'stores', 1) end
give(job, id, keys, passing, 10, 16)
if captured ~= '' then call('SET', request, captured) end
if lease ~= '' and unfinished(stage) then call('ZADD', leases, clock() + lease, id) end
if group then call('ZADD', busy, 0, counted) end
call('ZADD', due, score, id)
relist(listed, id, listing(state, route), owner, created, took(stage, time))
-- owing
return false
"""


def _variants(text: str) -> tuple[str, str]:
    """A script for jobs without a message, and for those that have one."""
    plain = text.replace("-- expecting\n", "").replace("-- owing\n", "")
    return plain, text.replace("-- expecting", _EXPECTING).replace("-- owing", _OWING)


# Without allow-oom: those that a full server refuses.
CREATE, CREATE_OWED = (Script("", text) for text in _variants(_CREATING))

FIND = Script(
    "flags=no-writes",
    """
local key = read('hash', 'HMGET', KEYS[1], 'id', 'mark')
local record = key[1] and read('hash', 'HGET', ARGV[1] .. key[1], 'record')
return record and {record, key[2]}
""",
)

LEARN = Script("flags=allow-oom", "call('SADD', KEYS[1], unpack(ARGV))")

_REPLACING = """
local job, request, body, due, leases, busy, listed, keys, passing = unpack(KEYS, 1, 9)
local channel, id, before, record, version, fence, state = unpack(ARGV, 1, 7)
local replayable, bodied, tail, lease, score, keep, stored = unpack(ARGV, 8, 14)
local created, time, route, owner, of_route, of_owner = unpack(ARGV, 15)
local stage = stages[state] or state
local old = read('hash', 'HMGET', job, 'version', 'fence', 'size', 'counted', 'keyed', 'stage',
  'not_before', 'head', 'stores')
if old[1] ~= before then return 0 end
for i = 10, #KEYS do
  if call('EXISTS', KEYS[i]) == 1 then return 0 end
end
local group, left, keyed = grouped(stage), old[4] ~= '' and old[4], old[5]
local counted = group and group .. route .. owner .. id
local full = group and counted ~= left and no_room(busy, group, route, owner, of_route, of_owner)
if full then return full end

local size = number_in(job, stage == 'gone' and not tonumber(old[3]) and 0 or old[3])
local dropped = {}
if size > 0 and (old[2] ~= fence or bodied == '0') then
  dropped, size = windows(body, size), 0
end
expect('string', unpack(touched(body, size, tail)))
if counted ~= left then expect('zset', busy) end
if not unfinished(stage) then expect('zset', leases, due) elseif lease ~= '' then
  expect('zset', leases)
end
-- expecting
if #KEYS >= 10 then expect('set', keys, passing) end
local lasting = keyed and (stage == 'gone' or keep ~= '') and own(id, keys) or {}
local freed = keyed and stage ~= 'queued' and stage ~= 'running' and own(id, passing) or {}
call('PUBLISH', channel, id)

if counted ~= left then
  if left then call('ZREM', busy, left) end
  if counted then call('ZADD', busy, 0, counted) end
end
unlink(dropped)
size = append(body, size, tail)
call('HSET', job, 'record', record, 'version', version, 'fence', fence, 'stage', stage,
  'size', size, 'counted', counted or '')
if stage == 'queued' and time ~= '' then
  call('HSET', job, 'not_before', time)
elseif old[7] then
  call('HDEL', job, 'not_before')
end
if old[8] and (old[2] ~= fence or not unfinished(stage)) then call('HDEL', job, 'head') end
if replayable == '0' then call('UNLINK', request) end

if keyed and stage ~= 'queued' and stage ~= 'running' then
  unlink(freed)
  call('UNLINK', passing)
end
if keyed and stage == 'gone' then
  unlink(lasting)
  call('UNLINK', keys)
end
give(job, id, keys, passing, 10, 21)

if old[9] then store(listed, id, route .. owner, tonumber(stored)) end

if not unfinished(stage) then
  call('ZREM', leases, id)
  call('ZADD', due, score, id)
elseif lease ~= '' then
  call('ZADD', leases, clock() + lease, id)
end
if keep ~= '' then
  call('EXPIRE', job, keep)
  if keyed then call('EXPIRE', keys, keep) end
  for _, key in ipairs(lasting) do call('EXPIRE', key, keep) end
  for _, key in ipairs(windows(body, size)) do call('EXPIRE', key, keep) end
end
if stage ~= old[6] then
  relist(listed, id, listing(state, route), owner, created, took(stage, time))
end
-- owing
return 1
"""

# Not repeatable: it would find its own version, and say that it was not the next one.
REPLACE, REPLACE_OWED = (
    Script("flags=allow-oom", text, repeatable=False) for text in _variants(_REPLACING)
)

# With keys, for which a full server has no room.
JOIN = Script("", _variants(_REPLACING)[0], repeatable=False)

# Begins a job that waits, as `Job.ready` says, with what starts it behind its record: the server
# reads none. Without a first line of its own format the record, or the captured request, is another
# version's, and left alone.
CLAIM = Script(
    "flags=allow-oom",
    """
local job, request, body, _, leases, busy, listed = unpack(KEYS)
local channel, id, startable, started, now, lease = unpack(ARGV, 1, 6)
local old = read('hash', 'HMGET', job, 'record', 'version', 'fence', 'size', 'counted', 'stage',
  'not_before', 'head')
local record, version, fence, size, counted, stage, not_before, head = unpack(old, 1, 8)
local captured = record and stage ~= 'gone' and read('string', 'GET', request)
local function ours(text)
  return string.sub(text, 1, #startable) == startable
end
local function ready()
  if tonumber(not_before or now) > tonumber(now) then return false end
  for i = 7, #ARGV do
    local waiting = grouped('queued') .. ARGV[i]
    if string.sub(counted, 1, #waiting) == waiting then return ours(record) and ours(captured) end
  end
end
if not captured or stage ~= 'queued' then return {record, stage == 'running' and captured} end
if not ready() then return {record, not ours(captured) and captured} end

version, fence = number_in(job, version) + 1, number_in(job, fence) + 1
local dropped = windows(body, number_in(job, size))
local counts = grouped('running') .. string.sub(counted, #grouped('queued') + 1)
expect('zset', leases, busy)
call('PUBLISH', channel, id)

record = record .. started
unlink(dropped)
call('HSET', job, 'record', record, 'version', version, 'fence', fence, 'stage', 'running',
  'size', 0, 'counted', counts)
if not_before or head then call('HDEL', job, 'not_before', 'head') end
call('ZREM', busy, counted)
call('ZADD', busy, 0, counts)
if lease ~= '' then call('ZADD', leases, clock() + lease, id) end
local was, owner = listed_in(listed, id)
if was then
  local created = redis.pcall('ZSCORE', lists(listed, was, '-')[1], id)
  move(listed, id, was, owner, nil, string.gsub(was, '^queued', 'running'), owner, created)
end
return {record, captured}
""",
)

# A job, and the body of its response if that is small.
FETCH = Script(
    "flags=no-writes",
    f"""
local job = read('hash', 'HMGET', KEYS[1], 'record', 'stage', 'size')
local size = job[2] == 'finished' and tonumber(job[3]) or 0
local small = size > 0 and size <= {SMALL}
return job[1] and {{job[1], small and read('string', 'GET', KEYS[2] .. ':0') or ''}}
""",
)

# A job, and the captured request that is kept with it.
REQUEST = Script(
    "flags=no-writes",
    """
local request = read('string', 'GET', KEYS[2])
return request and {read('hash', 'HGET', KEYS[1], 'record'), request}
""",
)

APPEND = Script(
    "flags=allow-oom",
    """
local job, body = KEYS[1], KEYS[2]
local fence, offset, chunk, channel, id, head = ARGV[1], tonumber(ARGV[2]), unpack(ARGV, 3)
local old = read('hash', 'HMGET', job, 'fence', 'stage', 'size')
if old[1] ~= fence or not unfinished(old[2]) then return 0 end
local size = number_in(job, old[3])
if offset > size then return false end
chunk = string.sub(chunk, size - offset + 1)
expect('string', unpack(touched(body, size, chunk)))
call('PUBLISH', channel, id)

call('HSET', job, 'size', append(body, size, chunk))
if head then call('HSET', job, 'head', fence .. ' ' .. head) end
return 1
""",
)

# A job, and what there is of its response. An older version leaves the head of another run.
PARTIAL = Script(
    "flags=no-writes",
    """
local job = read('hash', 'HMGET', KEYS[1], 'record', 'size', 'fence', 'head')
local record, size, fence, head = unpack(job, 1, 4)
local its = head and fence .. ' '
if head and string.sub(head, 1, #its) ~= its then head = false end
return record and {record, size, head and string.sub(head, #its + 1)}
""",
)

READ = Script(
    "flags=no-writes",
    """
local job = read('hash', 'HMGET', KEYS[1], 'fence', 'size')
return {job[1], job[2], read('string', 'GETRANGE', KEYS[2], ARGV[1], -1)}
""",
)

RENEW = Script(
    "flags=allow-oom",
    """
local stages = {}
local ends = clock() + ARGV[1]
expect('zset', KEYS[1])
for i = 2, #KEYS do
  local id, fence = ARGV[2 * i - 2], ARGV[2 * i - 1]
  local job = redis.pcall('HMGET', KEYS[i], 'fence', 'stage')
  stages[i - 1] = job[1] == fence and unfinished(job[2]) and job[2]
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
  page[#page + 1] = {found[i], found[i + 1], record_of(jobs .. found[i])}
end
return {string.format('%.6f', now), page}
""",
)

# Takes those that are due: of a job that is not there none is due, and one that has not ended is
# looked at again later.
DELIVERIES = Script(
    "flags=allow-oom",
    """
local deliveries, leases = unpack(KEYS)
local jobs, now, lease, limit, later = unpack(ARGV)
local time, page, skip = clock(), {}, 0
limit = tonumber(limit)
expect('zset', deliveries, leases)
while #page < limit do
  local ids = call('ZRANGE', deliveries, '-inf', now, 'BYSCORE', 'LIMIT', skip, limit)
  for _, id in ipairs(ids) do
    local job = redis.pcall('HMGET', jobs .. id, 'record', 'stage')
    local held = call('ZSCORE', leases, id)
    if not job[1] then
      call('ZREM', deliveries, id)
      call('ZREM', leases, id)
    elseif unfinished(job[2]) then
      call('ZADD', deliveries, now + later, id)
    else
      skip = skip + 1
      if #page < limit and (not held or tonumber(held) <= time) then
        call('ZADD', leases, time + lease, id)
        page[#page + 1] = {id, job[1]}
      end
    end
  end
  if #ids < limit then break end
end
return page
""",
)

# Puts off one that is not due, or drops it.
TURN_TO = Script(
    "flags=allow-oom",
    """
local deliveries, leases = unpack(KEYS)
for i = 1, #ARGV, 2 do
  local id, turn = ARGV[i], ARGV[i + 1]
  if turn == '' then
    call('ZREM', deliveries, id)
  elseif call('ZSCORE', deliveries, id) then
    call('ZADD', deliveries, turn, id)
  end
  call('ZREM', leases, id)
end
""",
)

SWEEP = Script(
    "flags=allow-oom",
    """
local due, listed = unpack(KEYS)
local jobs, channel, now, skip, limit = unpack(ARGV)
local ids = call('ZRANGE', due, '-inf', now, 'BYSCORE', 'LIMIT', skip, limit)
local expired = {}
for _, id in ipairs(ids) do
  local record = record_of(jobs .. id)
  if record and redis.pcall('HGET', jobs .. id, 'stage') ~= 'gone' then
    expired[#expired + 1] = {id, record}
  else
    call('PUBLISH', channel, id)
    store(listed, id, nil, 0)
    call('UNLINK', jobs .. id)
    call('ZREM', due, id)
    relist(listed, id, false)
  end
end
local left = call('ZCARD', due)
if left == 0 then call('UNLINK', listed .. ':totals') end
return {#ids == tonumber(limit) and 1 or 0, left, expired}
""",
)

RECORD = Script("flags=no-writes", "return record_of(KEYS[1])")

# Drops a job whose record is still this one; with a time if it is due, else if its lease has ended.
DROP = Script(
    "flags=allow-oom",
    """
local job, request, body, due, leases, busy, listed, keys, passing = unpack(KEYS)
local channel, id, record, now = unpack(ARGV)
local score = call('ZSCORE', now == '' and leases or due, id)
local late = now == '' and clock() or tonumber(now)
if not score or tonumber(score) > late or record_of(job) ~= record then return 0 end
local old = redis.pcall('HMGET', job, 'size', 'counted', 'keyed')
expect('zset', due, leases, busy)
local freed = old[3] and {own(id, keys), own(id, passing)} or {{}, {}}
call('PUBLISH', channel, id)

store(listed, id, nil, 0)
unlink(windows(body, tonumber(old[1]) or 0))
unlink(freed[1])
unlink(freed[2])
unlink({job, request, keys, passing})
call('ZREM', due, id)
call('ZREM', leases, id)
if old[2] then call('ZREM', busy, old[2]) end
relist(listed, id, false)
return 1
""",
)
