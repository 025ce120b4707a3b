-- map_clear: remove all keys of a map. KEYS: fence, marks, data, log. ARGV: epoch, nonce, length of the log, when
-- when: '' always, '0:' empty, else '<revision>:'. Answer: applied, revision, nil.
local _, foreign = open_map('')
if foreign then return foreign end
local when, empty = ARGV[4], redis.call('HLEN', data) <= 1
if not (when == '' or (when == '0:' and empty) or when == num(map.revision) .. ':') then return {0, map.revision, false} end
if not empty then
  local head = change('c', '')
  redis.call('DEL', data)
  redis.call('HSET', data, '', head)
end
return {1, map.revision, false}
