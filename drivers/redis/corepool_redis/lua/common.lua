-- Shared by all scripts of the driver.

local function num(value)  -- revisions are above 10^15: Lua's own conversion would write them as 1.7e+15
  return string.format('%.0f', value)
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function split_id(id)
  local high, low = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(high), tonumber(low)
end

local function id_less(a, b)
  local a_high, a_low = split_id(a)
  local b_high, b_low = split_id(b)
  return a_high < b_high or (a_high == b_high and a_low < b_low)
end

local function pairs_to_table(flat)  -- what XINFO answers
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

local DAY = 86400000
local FREE = '~'  -- the consumer that holds what was given back; no client has this name

-- Make a stream exist: KEYS[2] are the marks of the namespace, past which its ids must begin.
local function make_stream(events, config, kind, most)
  redis.call('HSET', config, 'k', kind, 'm', most, 'n', '0')
  if redis.call('EXISTS', events) == 0 then
    redis.call('XGROUP', 'CREATE', events, FREE, '$', 'MKSTREAM')  -- the only way to an empty stream
    redis.call('XGROUP', 'DESTROY', events, FREE)
    local mark = redis.call('HGET', KEYS[2], 'i')
    if mark then redis.call('XSETID', events, mark) end
  end
end

-- Remove an event of a work stream that its every sink is done with.
local function drop_if_done(events, sinks, id)
  if sinks > 1 then
    for _, flat in ipairs(redis.call('XINFO', 'GROUPS', events)) do
      local group = pairs_to_table(flat)
      if id_less(group['last-delivered-id'], id) then return end
      if redis.call('XPENDING', events, group['name'], id, id, 1)[1] then return end
    end
  end
  redis.call('XDEL', events, id)
end

-- Take what a consumer holds away from it, so that any member may have it from the time `due` on. Claim first: deleting a
-- consumer would drop what it holds. Returns whether nothing is left.
local function release(events, group, returned, consumer, due)
  local rows = redis.call('XPENDING', events, group, '-', '+', 256, consumer)
  for _, row in ipairs(rows) do
    redis.call('XCLAIM', events, group, FREE, 0, row[1], 'JUSTID')
    redis.call('ZADD', returned, num(due), row[1])
  end
  return #rows < 256
end

local function forget(events, group, members, consumer)
  redis.call('XGROUP', 'DELCONSUMER', events, group, consumer)
  redis.call('ZREM', members, consumer)
end

-- Forget members not seen since `since`, after freeing what they hold.
local function bury(events, group, members, returned, me, since, now)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', members, '-inf', '(' .. num(since))) do
    if member ~= me and release(events, group, returned, member, now) then forget(events, group, members, member) end
  end
end

-- Make the other members of a sink look at once, not only at their next round.
local function ring(scope, members, me)
  for _, member in ipairs(redis.call('ZREVRANGE', members, 0, 15)) do
    if member ~= me then
      redis.call('XADD', scope .. 'w:' .. member .. ':g', 'NOMKSTREAM', 'MAXLEN', '~', 64, '*', 'tend', '1')
    end
  end
end
