-- Shared by the scripts that change a single map with more than a set or a delete.
-- KEYS: fence, marks, data, log. ARGV: epoch, nonce, length of the log.
local data, log, nonce = KEYS[3], KEYS[4], ARGV[2]
local map = {revision = 0, logged = true}

local function open_map(key)  -- what it holds there
  local found = redis.call('HMGET', data, '', key)
  if found[1] then
    local revision, birth, logged = string.match(found[1], '^(%d+)%-%d+(:%d+)(:?w?)$')
    if not revision then return nil, redis.error_reply('WRONGTYPE the head of a map was not written by this driver') end
    map.revision, map.birth, map.logged = tonumber(revision), birth, logged ~= ''
  end
  return found[2]
end

-- Take the next revision and log what it does; the caller writes the data, with the head that is returned.
local function change(field, value)
  if map.birth then
    map.revision = map.revision + 1
    local id = num(map.revision) .. '-' .. nonce
    map.logged = map.logged and redis.call('XADD', log, 'NOMKSTREAM', 'MAXLEN', '~', ARGV[3], id, field, value)
  else
    local before
    map.revision, before = first_revision(log)
    map.birth = ':' .. num(map.revision)
    map.logged = redis.call('XADD', log, 'NOMKSTREAM', num(map.revision) .. '-' .. nonce, field, value, 'p', num(before))
  end
  return num(map.revision) .. '-' .. nonce .. map.birth .. (map.logged and ':w' or '')
end
