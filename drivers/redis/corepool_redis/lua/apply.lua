-- apply: map writes, reads, stream appends and acknowledgements of one namespace, decided in order and applied all at once.
-- KEYS: fence, marks, scratch, then for each map its data and log, for each stream its events and configuration
-- ARGV: epoch, nonce, length of the logs, largest value, then operations; a place is an index into KEYS
--   s place key value when optional      set           -> {applied, revision, previous}
--   d place key when optional            delete        -> {applied, revision, previous}
--   g place key                          get           -> '<revision>:<value>' or nil
--   c place when                         clear         -> {applied, revision, nil}
--   x place                              destroy a map -> 1
--   u place key kind count value...      update        -> {revision, value, previous} or '!wire', '!overflow', '!large'
--   a place name topic payload stamp optional create   -> id or '!missing', '!sealed', '!full'
--   k place sink id count consumer       acknowledge   -> 1 or 0
-- when: '' always, '0' absent, else the revision. Answer: the index of the operation that stopped it or -1, then the results.
-- Nothing is written before everything is decided: Redis does not roll a script back.
-- The most frequent commit by far is one set in a map that exists. It is decided and applied here exactly as below, without first
-- making the thirty functions that others need: that halves the server's time for it.
--FAST--
if ARGV[5] == 's' and #ARGV == 10 then
  local data, key, value, when = KEYS[4], ARGV[7], ARGV[8], ARGV[9]
  local found = redis.call('HMGET', data, '', key)
  local raw = found[2]
  local at, birth = string.match(found[1] or '', '^(%d+)%-%d+(:%d+)$')
  if at then
    local revision = tonumber(at)
    if when ~= '' and ((when == '0' and raw) or (when ~= '0' and not (raw and string.sub(raw, 1, #when + 1) == when .. ':'))) then
      if ARGV[10] == '0' then return {0, {0, revision, raw}} end
      return {-1, {0, revision, raw}}
    end
    revision = revision + 1
    at = string.format('%.0f', revision)
    local id = at .. '-' .. ARGV[2]
    redis.call('HSET', data, '', id .. birth, key, at .. ':' .. value)
    redis.call('XADD', KEYS[5], 'NOMKSTREAM', 'MAXLEN', '~', ARGV[3], id, 's' .. key, value)
    return {-1, {1, revision, raw}}
  end
end
--SLOW--
local nonce, keep, most = ARGV[2], ARGV[3], tonumber(ARGV[4])
local maps, opened, streams, appends, acks = {}, {}, {}, {}, {}
local results, stamps = {}, {}
local broken = false
local at = 5

local function take()
  at = at + 1
  return ARGV[at - 1]
end

local function open_map(key)
  local place = tonumber(take())
  key = key or take()
  local map = maps[place]
  if not map then
    local found = redis.call('HMGET', KEYS[place], '', key)
    map = {data = KEYS[place], log = KEYS[place + 1], held = {[key] = found[2]}, dirty = {}, entries = {}, revision = 0}
    if found[1] then
      local revision, birth = string.match(found[1], '^(%d+)%-%d+:(%d+)$')
      map.revision, map.birth = tonumber(revision or '0'), birth
      broken = broken or not revision
    end
    maps[place] = map
    opened[#opened + 1] = map
  elseif map.held[key] == nil then
    map.held[key] = not map.cleared and redis.call('HGET', map.data, key) or false
  end
  return map, key
end

-- The next revision. A map that begins (again) starts at the server's time in microseconds, past whatever its log and the
-- namespace's mark remember, and its first log entry names the revision before it ('p'), so that a watcher sees no gap.
local function advance(map)
  if map.birth then
    map.revision = map.revision + 1
    return map.revision, false
  end
  local time = redis.call('TIME')
  local newest = redis.call('XREVRANGE', map.log, '+', '-', 'COUNT', 1)[1]
  local before = newest and split_id(newest[1]) or 0
  local mark = tonumber(redis.call('HGET', KEYS[2], 'r') or '0')
  map.revision = math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), before + 1, mark + 1)
  map.birth = num(map.revision)
  return map.revision, num(before)
end

local function record(map, field, value)
  local revision, before = advance(map)
  map.entries[#map.entries + 1] = {num(revision) .. '-' .. nonce, field, value, before}
  return revision
end

local function put(map, key, value)
  local revision = record(map, 's' .. key, value)
  map.held[key] = num(revision) .. ':' .. value
  map.dirty[key] = true
  return revision
end

local function holds(when, raw)
  if when == '' then return true end
  if when == '0' then return not raw end
  return raw and string.sub(raw, 1, #when + 1) == when .. ':'
end

local function open_stream()
  local place = tonumber(take())
  local stream = streams[place]
  if not stream then
    local found = redis.call('HMGET', KEYS[place + 1], 'k', 'm', 'x', 'n')
    stream = {events = KEYS[place], config = KEYS[place + 1], kind = found[1], most = tonumber(found[2] or ''),
      sealed = found[3], sinks = tonumber(found[4] or '0'), acked = {}}
    streams[place] = stream
  end
  return stream
end

local function netstrings(data)
  local items, from = {}, 1
  while from <= #data do
    local colon = string.find(data, ':', from, true)
    local digits = colon and string.sub(data, from, colon - 1) or ''
    if not string.match(digits, '^%d+$') or #digits > 11 or (#digits > 1 and string.byte(digits) == 48) then return nil end
    local stop = colon + 1 + tonumber(digits)
    if string.sub(data, stop, stop) ~= ',' then return nil end
    items[#items + 1] = string.sub(data, colon + 1, stop - 1)
    from = stop + 1
  end
  return items
end

local function add(current, by)  -- in the server's 64-bit integers: Lua's numbers have 53 bits
  local sign, digits = string.match(current or '0', '^(%-?)(%d+)$')
  if not digits or #digits > 19 then return nil, '!wire' end
  digits = string.gsub(digits, '^0+', '')
  redis.call('SET', KEYS[3], digits == '' and '0' or sign .. digits)
  local answer = redis.pcall('INCRBY', KEYS[3], by)
  local value = redis.call('GET', KEYS[3])
  redis.call('DEL', KEYS[3])
  if type(answer) == 'table' then return nil, '!overflow' end
  return value
end

local function update(current, kind, values)
  if kind == 'i' then return add(current, values[1]) end
  local items = netstrings(current or '')
  if not items then return nil, '!wire' end
  local named = {}
  if kind == 'r' then
    for _, value in ipairs(values) do named[value] = true end
    local rest = {}
    for _, item in ipairs(items) do
      if not named[item] then rest[#rest + 1] = item end
    end
    items = rest
  else
    for _, item in ipairs(items) do named[item] = true end
    for _, value in ipairs(values) do
      if kind == 'a' or not named[value] then items[#items + 1] = value end
      named[value] = true
    end
  end
  for i, item in ipairs(items) do items[i] = #item .. ':' .. item .. ',' end
  return table.concat(items)
end

local decide = {}  -- each returns its result and whether it was refused in a way that stops the commit

function decide.s(index)
  local map, key = open_map()
  local value, when, optional = take(), take(), take()
  local raw = map.held[key]
  if not holds(when, raw) then return {0, map.revision, raw}, optional == '0' end
  stamps[index] = put(map, key, value)
  return {1, stamps[index], raw}
end

function decide.d(index)
  local map, key = open_map()
  local when, optional = take(), take()
  local raw = map.held[key]
  if not holds(when, raw) then return {0, map.revision, raw}, optional == '0' end
  stamps[index] = map.revision
  if raw then
    stamps[index] = record(map, 'd' .. key, '')
    map.held[key] = false
    map.dirty[key] = true
  end
  return {1, stamps[index], raw}
end

function decide.g()
  local map, key = open_map()
  return map.held[key]
end

function decide.c()
  local map = open_map('')
  local when = take()
  local empty = redis.call('HLEN', map.data) <= 1
  local good = when == '' or (when == '0' and empty) or when == num(map.revision)
  if not good then return {0, map.revision, false}, true end
  if not empty then
    record(map, 'c', '')
    map.cleared, map.held, map.dirty = true, {}, {}
  end
  return {1, map.revision, false}
end

function decide.x()  -- stands alone in its script, so it may write at once
  local map = open_map('')
  if map.birth then
    local kind = redis.call('HLEN', map.data) > 1 and 'x' or 'y'  -- y: nothing was left to clear, so watchers tell nobody
    local revision = num(advance(map))
    redis.call('XADD', map.log, 'NOMKSTREAM', revision .. '-' .. nonce, kind, '')
    redis.call('DEL', map.data)
    redis.call('PEXPIRE', map.log, 60000)  -- long enough for every live watcher to see the end
    if tonumber(redis.call('HGET', KEYS[2], 'r') or '0') < map.revision then redis.call('HSET', KEYS[2], 'r', revision) end
    redis.call('PEXPIRE', KEYS[2], num(DAY))
  end
  return 1
end

function decide.u()
  local map, key = open_map()
  local kind, values = take(), {}
  for i = 1, tonumber(take()) do values[i] = take() end
  local raw = map.held[key]
  if raw and not string.find(raw, '^%d+:') then return '!wire', true end
  local current = raw and string.sub(raw, string.find(raw, ':', 1, true) + 1)
  local value, problem = update(current or nil, kind, values)
  if problem then return problem, true end
  if raw and value == current then return {tonumber(string.match(raw, '^%d+')), value, raw} end
  if #value > most then return '!large', true end
  return {put(map, key, value), value, raw}
end

function decide.a(index)
  local stream = open_stream()
  local name, topic, payload, stamp, optional, create = take(), take(), take(), take(), take(), take()
  local problem
  if not stream.kind and create == '1' then
    stream.kind, stream.create = 'work', true
  end
  if not stream.kind then
    problem = '!missing'
  elseif stream.sealed then
    problem = '!sealed'
  elseif stream.kind == 'work' and stream.most then
    stream.length = (stream.length or redis.call('XLEN', stream.events)) + 1
    if stream.length > stream.most then problem = '!full' end
  end
  if problem then return problem, optional == '0' end
  local fields = {'n', name, 'p', payload}
  if topic ~= '' then
    fields[5], fields[6] = 't', topic
  end
  if stamp ~= '' then
    fields[#fields + 1] = 's'
    fields[#fields + 1] = num(stamps[tonumber(stamp)] or 0)
  end
  appends[#appends + 1] = {index, stream, fields}
  return ''
end

function decide.k()
  local stream = open_stream()
  local sink, id, count, consumer = take(), take(), tonumber(take()), take()
  local rows = redis.pcall('XPENDING', stream.events, 'g' .. sink, id, id, 1)
  local row = not rows.err and rows[1]
  local mark = sink .. ' ' .. id
  if not row or row[2] ~= consumer or row[4] ~= count or stream.acked[mark] then return 0 end
  stream.acked[mark] = true
  acks[#acks + 1] = {stream, 'g' .. sink, id}
  return 1
end

local index = 0
while at <= #ARGV do
  local result, stops = decide[take()](index)
  if broken then return redis.error_reply('WRONGTYPE the head of a map was not written by this driver') end
  results[index + 1] = result
  if stops then return {index, unpack(results, 1, index + 1)} end
  index = index + 1
end

-- Appends come first: should another program have put something else where a stream belongs, nothing is written yet.
for _, append in ipairs(appends) do
  local stream = append[2]
  if stream.create then
    make_stream(stream.events, stream.config, 'work', '')
    stream.create = false
  end
  if stream.kind == 'log' and stream.most then
    results[append[1] + 1] = redis.call('XADD', stream.events, 'MAXLEN', stream.most, '*', unpack(append[3]))
  else
    results[append[1] + 1] = redis.call('XADD', stream.events, '*', unpack(append[3]))
  end
end

for _, map in ipairs(opened) do
  if #map.entries > 0 then
    local last = map.entries[#map.entries][1]
    local set, unset = {'HSET', map.data, '', last .. ':' .. map.birth}, {'HDEL', map.data}
    for key in pairs(map.dirty) do
      if map.held[key] then
        set[#set + 1] = key
        set[#set + 1] = map.held[key]
      else
        unset[#unset + 1] = key
      end
    end
    if map.cleared then redis.call('DEL', map.data) end
    redis.call(unpack(set))
    if #unset > 2 then redis.call(unpack(unset)) end
    for _, entry in ipairs(map.entries) do
      if entry[4] then
        redis.call('XADD', map.log, 'NOMKSTREAM', entry[1], entry[2], entry[3], 'p', entry[4])
      else
        redis.call('XADD', map.log, 'NOMKSTREAM', 'MAXLEN', '~', keep, entry[1], entry[2], entry[3])
      end
    end
  end
end

for _, ack in ipairs(acks) do
  local stream, group, id = ack[1], ack[2], ack[3]
  redis.call('XACK', stream.events, group, id)
  if stream.kind == 'work' then drop_if_done(stream.events, stream.sinks, id) end
end

return {-1, unpack(results, 1, index)}
