-- Shared by all scripts of the driver.

local function num(value)  -- revisions are above 10^15: Lua's own conversion would write them as 1.7e+15
  return string.format('%.0f', value)
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

-- Where a map begins (again): at the server's time in microseconds, past whatever its log and the namespace's mark remember.
-- Also the newest revision that the log remembers, or 0.
local function first_revision(log)
  local time = redis.call('TIME')
  local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  local before = newest and split_id(newest[1]) or 0
  local mark = tonumber(redis.call('HGET', KEYS[2], 'r') or '0')
  return math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), before + 1, mark + 1), before
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
