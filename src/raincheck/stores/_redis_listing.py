"""What `RedisStore` asks the server about many jobs: the scripts that list and count them.

Each job is listed in two sorted sets, by when it was accepted: that of all jobs of its route and
state, and that of its owner's among them. So a list of any jobs is several sets in one, and no
script looks at jobs that are not wanted.
"""

from __future__ import annotations

import math

from raincheck.job import State
from raincheck.serialization import load_cursor
from raincheck.stores._redis_scripts import Script

_ROUTES = """
-- Those that there were jobs of.
local function routes(listed)
  local routes, known = {}, {}
  for _, group in ipairs(read('hash', 'HKEYS', listed .. ':totals')) do
    local route = string.sub(group, string.find(group, ' ', 1, true) + 1)
    if not known[route] then routes[#routes + 1] = route end
    known[route] = true
  end
  return routes
end
"""

LIST = Script(
    "flags=no-writes",
    _ROUTES
    + """
local listed = KEYS[1]
local jobs, owner, route, since, score, id, count = unpack(ARGV, 1, 7)
score, since, count = tonumber(score), tonumber(since), tonumber(count)

-- As sorted sets have them; what Lua says of two strings depends on the server's language.
local function less(one, other)
  for i = 1, math.min(#one, #other) do
    local a, b = string.byte(one, i), string.byte(other, i)
    if a ~= b then return a < b end
  end
  return #one < #other
end

-- How many in a set do not come before the time and the id where the list begins.
local function skipped(set)
  if id == '' then return read('zset', 'ZCOUNT', set, ARGV[5], '+inf') end
  local low = read('zset', 'ZCOUNT', set, '(' .. ARGV[5], '+inf')
  local high = low + call('ZCOUNT', set, ARGV[5], ARGV[5])
  while low < high do
    local middle = math.floor((low + high) / 2)
    if less(call('ZRANGE', set, middle, middle, 'REV')[1], id) then
      high = middle
    else
      low = middle + 1
    end
  end
  return low
end

local sets = {}
for _, of in ipairs(routes(listed)) do
  for i = 8, (route == '' or of == route) and #ARGV or 0 do
    local all = lists(listed, ARGV[i] .. ' ' .. of, owner)
    sets[#sets + 1] = all[#all]
  end
end

-- The next of each set, of which some are read at once, in order: the last of them is the first.
local heads, step = {}, math.ceil((count + 1) / #sets)
local function earlier(one, other)
  if one.score ~= other.score then return one.score < other.score end
  return less(one.id, other.id)
end
local function advance(head)
  if head.i > #head.found then
    head.found = call('ZRANGE', head.set, head.at, head.at + step - 1, 'REV', 'WITHSCORES')
    head.at, head.i = head.at + step, 1
  end
  head.id, head.score = head.found[head.i], tonumber(head.found[head.i + 1])
  head.i = head.i + 2
  if not head.id or head.score < since then return end
  local low, high = 1, #heads + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if earlier(heads[middle], head) then low = middle + 1 else high = middle end
  end
  table.insert(heads, low, head)
end
for _, set in ipairs(sets) do
  advance({set = set, at = skipped(set), found = {}, i = 1})
end

local page = {}
while #page < count and #heads > 0 do
  local head = table.remove(heads)
  page[#page + 1] = {head.id, head.found[head.i - 1], record_of(jobs .. head.id)}
  advance(head)
end
return {#heads, page}
""",
)

TOTALS = Script(
    "flags=no-writes",
    _ROUTES
    + """
local listed, groups = KEYS[1], {}
for _, route in ipairs(routes(listed)) do
  for _, state in ipairs(ARGV) do
    local group = state .. ' ' .. route
    local set = lists(listed, group, '-')[1]
    local oldest = read('zset', 'ZRANGE', set, 0, 0, 'WITHSCORES')[2]
    if oldest then
      local seconds = call('HGET', listed .. ':totals', group)
      groups[#groups + 1] = {group, call('ZCARD', set), oldest, seconds or '0'}
    end
  end
end
return groups
""",
)


def grouped(group: bytes) -> tuple[str, State]:
    """The route and the state that a group is of."""
    state, _, route = group.decode("utf-8", "surrogatepass").partition(" ")
    return route.partition(":")[2], State(state)


def before(until: float | None, after: str | None) -> tuple[float, str]:
    """The time and the id before which a page begins, the newest job first.

    Raises:
        MalformedCursor: `after` is none.
    """
    end = math.inf if until is None else until, ""
    return end if after is None else min(end, load_cursor(after))
