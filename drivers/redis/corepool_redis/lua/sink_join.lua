-- sink_join: join a sink, make it on the first join, and forget members that vanished.
-- KEYS: events, configuration, base of the stream's other keys, wake stream. ARGV: sink, start id, ack_wait in ms, client
-- Answer: {0} no such stream; {1, number of the sink}; {2, the ack_wait it has}
local events, config, base, wake = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local sink, start, wait, me = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if redis.call('HEXISTS', config, 'k') == 0 then return {0} end
local number = redis.call('HGET', config, 'g:' .. sink)
if number then
  local held = redis.call('HGET', config, 'a:' .. number)
  if held ~= wait then return {2, held} end
else
  number = num(redis.call('HINCRBY', config, 'n', 1) - 1)
  redis.call('HSET', config, 'g:' .. sink, number, 'a:' .. number, wait)
  redis.call('XGROUP', 'CREATE', events, 'g' .. number, start, 'MKSTREAM')
end
redis.pcall('XGROUP', 'CREATE', events, 'g' .. number, '0', 'MKSTREAM')  -- only if somebody removed it: BUSYGROUP else
redis.pcall('XGROUP', 'CREATE', wake, 'g' .. number, '$', 'MKSTREAM')
redis.call('PEXPIRE', wake, 3600000)
local members, returned, now = base .. 'g' .. number .. ':v', base .. 'g' .. number .. ':z', now_ms()
bury(events, 'g' .. number, members, returned, me, now - tonumber(wait), now)
redis.call('ZADD', members, num(now), me)
return {1, tonumber(number)}
