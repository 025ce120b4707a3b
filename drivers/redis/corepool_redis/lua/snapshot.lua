-- snapshot: a whole map, and a log that begins where the snapshot ends.
-- KEYS: data, log. ARGV: life of the log in ms. Answer: {id of the newest commit, birth, {field, raw, ...}}
local head = redis.call('HGET', KEYS[1], '')
local logged = head and string.sub(head, -2) == ':w'  -- so marked, writers keep the log
local id, birth = '0-1', '0'
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if head then
  id, birth = string.match(head, '^(%d+%-%d+):(%d+)')
  if newest and newest[1] ~= id then  -- a log that missed commits is no log
    redis.call('DEL', KEYS[2])
    newest = nil
  end
elseif newest then
  id = newest[1]
end
if not newest then redis.call('XADD', KEYS[2], id, 'm', '') end
redis.call('PEXPIRE', KEYS[2], ARGV[1])
if head and not logged then redis.call('HSET', KEYS[1], '', head .. ':w') end
return {id, birth, head and redis.call('HGETALL', KEYS[1]) or {}}
