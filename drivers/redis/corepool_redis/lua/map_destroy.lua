-- map_destroy: end a map. KEYS: fence, marks, data, log. ARGV: epoch, nonce
local _, foreign = open_map('')
if foreign then return foreign end
if map.birth then
  local kind = redis.call('HLEN', data) > 1 and 'x' or 'y'  -- y: nothing was left to clear, so watchers tell nobody
  local last = num(map.revision + 1)
  redis.call('XADD', log, 'NOMKSTREAM', last .. '-' .. nonce, kind, '')
  redis.call('DEL', data)
  redis.call('PEXPIRE', log, 60000)  -- long enough for every live watcher to see the end
  if tonumber(redis.call('HGET', KEYS[2], 'r') or '0') <= map.revision then redis.call('HSET', KEYS[2], 'r', last) end
  redis.call('PEXPIRE', KEYS[2], num(DAY))
end
return 1
