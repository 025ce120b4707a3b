-- sink_settle: give a delivery back, or keep it for longer; only if the receipt is the current one: else a member that was
-- given up would steal the event back.
-- KEYS: fence, events, members, returned. ARGV: epoch, 'nack' | 'extend', group, id, count, consumer, delay in ms, client, scope
local events, group, id, consumer = KEYS[2], ARGV[3], ARGV[4], ARGV[6]
local rows = redis.pcall('XPENDING', events, group, id, id, 1)
local row = not rows.err and rows[1]
if not row or row[2] ~= consumer or row[4] ~= tonumber(ARGV[5]) then return 0 end
if ARGV[2] == 'extend' then
  redis.call('XCLAIM', events, group, consumer, 0, id, 'JUSTID')
  return 1
end
redis.call('XCLAIM', events, group, FREE, 0, id, 'JUSTID')
redis.call('ZADD', KEYS[4], num(now_ms() + tonumber(ARGV[7])), id)
ring(ARGV[9], KEYS[3], ARGV[8])
return 1
