-- stream_admin: seal, destroy, or remove events. KEYS: fence, marks, events, configuration, base of the stream's other keys
-- ARGV: epoch, 'seal' | 'destroy' | 'remove', ids...
local events, config, base = KEYS[3], KEYS[4], KEYS[5]
if ARGV[2] == 'seal' then
  if redis.call('HEXISTS', config, 'k') == 1 then redis.call('HSET', config, 'x', '1') end
  return 1
end
local sinks = tonumber(redis.call('HGET', config, 'n') or '0')
if ARGV[2] == 'remove' then
  local removed = 0
  for i = 3, #ARGV do
    removed = removed + redis.call('XDEL', events, ARGV[i])
    for sink = 0, sinks - 1 do redis.pcall('XACK', events, 'g' .. sink, ARGV[i]) end
  end
  return removed
end
if redis.call('EXISTS', events) == 1 then
  local last = pairs_to_table(redis.call('XINFO', 'STREAM', events))['last-generated-id']
  local mark = redis.call('HGET', KEYS[2], 'i')
  if not mark or id_less(mark, last) then redis.call('HSET', KEYS[2], 'i', last) end
  redis.call('PEXPIRE', KEYS[2], num(DAY))
end
redis.call('DEL', events, config)
for sink = 0, sinks - 1 do redis.call('DEL', base .. 'g' .. sink .. ':v', base .. 'g' .. sink .. ':z') end
return 1
