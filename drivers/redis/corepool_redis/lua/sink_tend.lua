-- sink_tend: one round for all sinks of a client: be seen, bury who vanished, take what is due again.
-- KEYS: wake stream, then for each sink its events, members and returned events
-- ARGV: client, then for each sink its number, ack_wait in ms, how many events are wanted
-- Answer, for each sink: {0} it is gone, or {1, ms until something given back is due or -1, id, count, fields, ...}
local me, answers = ARGV[1], {}
local now = now_ms()

local function claim(answer, events, group, id)
  local entry = redis.call('XCLAIM', events, group, me, 0, id)[1]
  if entry then
    answer[#answer + 1] = id
    answer[#answer + 1] = redis.call('XPENDING', events, group, id, id, 1)[1][4]
    answer[#answer + 1] = entry[2]
    return 1
  end
  redis.call('XACK', events, group, id)  -- the event itself is gone: nothing to deliver, nothing to keep
  return 0
end

local function tend(events, members, returned, group, wait, wanted)
  local rows = redis.pcall('XPENDING', events, group, 'IDLE', wait, '-', '+', 100)
  if rows.err then return {0} end
  redis.call('ZADD', members, num(now), me)
  bury(events, group, members, returned, me, now - 2 * wait, now)
  local answer = {1, -1}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', returned, '-inf', num(now), 'LIMIT', 0, wanted)) do
    redis.call('ZREM', returned, id)
    local row = redis.call('XPENDING', events, group, id, id, 1)[1]
    if row and row[2] == FREE then wanted = wanted - claim(answer, events, group, id) end
  end
  for _ = 1, 10 do  -- pages; each goes on after the one before
    for _, row in ipairs(rows) do
      if wanted > 0 and (row[2] ~= FREE or not redis.call('ZSCORE', returned, row[1])) then
        wanted = wanted - claim(answer, events, group, row[1])
      end
    end
    if wanted <= 0 or #rows < 100 then break end
    rows = redis.call('XPENDING', events, group, 'IDLE', wait, '(' .. rows[#rows][1], '+', 100)
  end
  local due = redis.call('ZRANGE', returned, 0, 0, 'WITHSCORES')
  if due[2] then
    answer[2] = math.max(0, tonumber(due[2]) - now)
  elseif #answer > 2 then
    redis.call('XGROUP', 'DELCONSUMER', events, group, FREE)
  end
  return answer
end

for i = 2, #KEYS, 3 do
  local a = i  -- the same stride in ARGV
  answers[#answers + 1] = tend(KEYS[i], KEYS[i + 1], KEYS[i + 2], 'g' .. ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]))
end
redis.call('PEXPIRE', KEYS[1], 3600000)
return answers
