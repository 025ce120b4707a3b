-- sink_pending: what a client holds, without touching it (XREADGROUP with an id would count it as a new delivery).
-- KEYS: events. ARGV: group, client, then either 'list', id to go on after or '-', or 'fetch', ids...
-- Answer: list: {id, count, ...}; fetch: {id, count, fields, ...}
local group, me, answer = ARGV[1], ARGV[2], {}
if ARGV[3] == 'list' then
  local rows = redis.pcall('XPENDING', KEYS[1], group, ARGV[4], '+', 500, me)
  if rows.err then return answer end
  for _, row in ipairs(rows) do
    answer[#answer + 1] = row[1]
    answer[#answer + 1] = row[4]
  end
  return answer
end
for i = 4, #ARGV do
  local row = redis.call('XPENDING', KEYS[1], group, ARGV[i], ARGV[i], 1, me)[1]
  local entry = row and redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  if entry then
    answer[#answer + 1] = ARGV[i]
    answer[#answer + 1] = row[4]
    answer[#answer + 1] = entry[2]
  elseif row then
    redis.call('XACK', KEYS[1], group, ARGV[i])
  end
end
return answer
