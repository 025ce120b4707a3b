-- set: one key of one map, for a caller who is alone: what apply does with a section of a single 's', and in a third of the time.
-- KEYS: fence, marks, data, log. ARGV: epoch, nonce, length of the log, key, value, when.
-- Answer: -1 and applied, revision, previous, as apply's.
local call, data, key, value, when = redis.call, KEYS[3], ARGV[4], ARGV[5], ARGV[6]
local found = call('HMGET', data, '', key)
local raw = found[2]
local revision, birth, logged = 0, nil, ':w'
if found[1] then
  revision, birth, logged = string.match(found[1], '^(%d+)%-%d+(:%d+)(:?w?)$')
  if not revision then return redis.error_reply('WRONGTYPE the head of a map was not written by this driver') end
end
if when ~= '' and not (when == '0:' and not raw) and not (raw and string.sub(raw, 1, #when) == when) then
  return {-1, 0, tonumber(revision), raw}
end
local first, before
if birth then
  revision = revision + 1
else  -- it begins (again): its first log entry names the revision before it
--SHARED--
  first, before = first_revision(KEYS[4])
  revision, birth, before = first, ':' .. num(first), num(before)
end
local digits = string.format('%d', revision)
if #digits < 16 then digits = string.format('%.0f', revision) end  -- on some machines %d is of 32 bits
local id = digits .. '-' .. ARGV[2]
if logged ~= '' then
  local added
  if first then
    added = redis.pcall('XADD', KEYS[4], 'NOMKSTREAM', id, 's' .. key, value, 'p', before)
  else
    added = redis.pcall('XADD', KEYS[4], 'NOMKSTREAM', 'MAXLEN', '~', ARGV[3], id, 's' .. key, value)
  end
  if type(added) ~= 'string' then logged = '' end  -- without a log nobody watches any more
end
call('HSET', data, '', id .. birth .. logged, key, digits .. ':' .. value)
return {-1, 1, revision, raw}
