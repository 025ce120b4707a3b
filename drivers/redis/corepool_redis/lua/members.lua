-- Shared by the scripts of sinks.

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
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
