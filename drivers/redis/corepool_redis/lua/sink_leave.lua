-- sink_leave: leave a sink. What was fetched but not handed out is free at once; what was handed out can still be
-- acknowledged until its ack_wait ends, and the next member buries the rest.
-- KEYS: events, members, returned. ARGV: group, client, scope, ids to free...
local group, me = ARGV[1], ARGV[2]
for i = 4, #ARGV do
  local rows = redis.pcall('XPENDING', KEYS[1], group, ARGV[i], ARGV[i], 1, me)
  if rows.err then return 0 end
  if rows[1] then
    redis.call('XCLAIM', KEYS[1], group, FREE, 0, ARGV[i], 'JUSTID')
    redis.call('ZADD', KEYS[3], num(now_ms()), ARGV[i])
  end
end
local rows = redis.pcall('XPENDING', KEYS[1], group, '-', '+', 1, me)
if not rows.err and not rows[1] then forget(KEYS[1], group, KEYS[2], me) end
if #ARGV > 3 then ring(ARGV[3], KEYS[2], me) end
return 1
