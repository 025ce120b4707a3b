-- apply: map writes, reads, stream appends and acknowledgements of one namespace. What clients commit at the same moment comes as
-- several sections of one run (group commit); each is decided in order and applied all at once, or not at all, on its own.
-- KEYS: fence, marks, scratch, then for each map its data and log, for each stream its events and configuration
-- ARGV: epoch, nonce, length of the logs, largest value, then each section: its operations one after the other, as one MessagePack
-- array (an argument of its own for every part costs several times as much); a place is an index into KEYS
--   s place key value when optional      set           -> {applied, revision, previous}
--   d place key when optional            delete        -> {applied, revision, previous}
--   g place key                          get           -> '<revision>:<value>' or nil
--   c place when                         clear         -> {applied, revision, nil}
--   x place                              destroy a map -> 1
--   u place key kind count value...      update        -> {revision, value, previous} or '!wire', '!overflow', '!large'
--   a place name topic payload stamp optional create   -> id or '!missing', '!sealed', '!full'
--   k place sink id count consumer       acknowledge   -> 1 or 0
-- when: '' always, '0' absent, else the revision. Answer for each section: the index of the operation that stopped it or -1,
-- then the results; or -2 and why nothing of it was applied, or -3 and why it may have been applied in part.
-- Nothing of a section is written before all of it is decided: Redis does not roll a script back.
-- The most frequent section by far is one set in a map that exists. While the sections are such, they are decided and applied here
-- exactly as below, without the functions and tables that others need: that takes half of the server's time for them.
--FAST--
local answers, heads, next_section, section = {}, {}, 5, nil
while next_section <= #ARGV do
  section = cmsgpack.unpack(ARGV[next_section])
  if section[1] ~= 's' or #section ~= 6 then break end
  local place, key, value, when = section[2], section[3], section[4], section[5]
  local data, head = KEYS[place], heads[place]
  local raw
  if head then
    raw = redis.call('HGET', data, key)
  else
    local found = redis.call('HMGET', data, '', key)
    local revision, birth, logged = string.match(found[1] or '', '^(%d+)%-%d+(:%d+)(:?w?)$')
    if not revision then break end
    head = {tonumber(revision), birth, logged}
    heads[place] = head
    raw = found[2]
  end
  if when == '' or (when == '0' and not raw) or (raw and string.sub(raw, 1, #when + 1) == when .. ':') then
    local revision = head[1] + 1
    local digits = string.format('%.0f', revision)
    local id = digits .. '-' .. ARGV[2]
    if head[3] ~= ''
      and not redis.call('XADD', KEYS[place + 1], 'NOMKSTREAM', 'MAXLEN', '~', ARGV[3], id, 's' .. key, value) then
      head[3] = ''  -- nobody watches any more
    end
    redis.call('HSET', data, '', id .. head[2] .. head[3], key, digits .. ':' .. value)
    head[1] = revision
    answers[next_section - 4] = {-1, {1, revision, raw}}
  else
    answers[next_section - 4] = {section[6] == 0 and 0 or -1, {0, head[1], raw}}
  end
  next_section = next_section + 1
end
if next_section > #ARGV then return answers end
--SLOW--
local call, keys = redis.call, KEYS
local match, sub, format = string.match, string.sub, string.format
local nonce, keep = ARGV[2], ARGV[3]
local argv, at  -- the section at work, and what of it is read next
local maps = {}  -- by place, for all sections; what is said of one section is renewed when it first opens the map
local opened, streams, appends, acks, stamps  -- of the section at work
local writing  -- whether it has begun to write

local function open_map(place, key)
  local map = maps[place]
  if not map then
    local data = keys[place]
    local found = call('HMGET', data, '', key)
    map = {data = data, log = keys[place + 1], revision = 0, birth = false, logged = true, held = {[key] = found[2]}}
    if found[1] then
      local revision, birth, logged = match(found[1], '^(%d+)%-%d+:(%d+)(:?w?)$')
      if not revision then error({broken = 'WRONGTYPE the head of a map was not written by this driver'}) end
      map.revision, map.birth, map.logged = tonumber(revision), birth, logged ~= ''
    end
    maps[place] = map
    map.section, map.was, map.born, map.dirty, map.cleared = appends, map.revision, map.birth, {}, false
    opened[#opened + 1] = map
    return map
  end
  if map.section ~= appends then  -- each section has an `appends` of its own
    map.section, map.revision, map.birth, map.dirty, map.cleared = appends, map.was, map.born, {}, false
    map.held = {}
    for i = #map, 1, -1 do map[i] = nil end
    opened[#opened + 1] = map
  end
  if map.held[key] == nil then map.held[key] = not map.cleared and call('HGET', map.data, key) or false end
  return map
end

-- The next revision. A map that begins (again) starts at the server's time in microseconds, past whatever its log and the
-- namespace's mark remember, and its first log entry names the revision before it ('p'), so that a watcher sees no gap.
local function advance(map)
  if map.birth then
    map.revision = map.revision + 1
    return false
  end
  local time = call('TIME')
  local newest = call('XREVRANGE', map.log, '+', '-', 'COUNT', 1)[1]
  local before = newest and split_id(newest[1]) or 0
  local mark = tonumber(call('HGET', keys[2], 'r') or '0')
  map.revision = math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), before + 1, mark + 1)
  map.birth = num(map.revision)
  return num(before)
end

local function record(map, field, value)
  local before = advance(map)
  local revision = format('%.0f', map.revision)
  map.id = revision .. '-' .. nonce
  if map.logged then map[#map + 1] = {map.id, field, value, before} end
  return revision
end

-- What a section makes of a key: false if it goes.
local function hold(map, key, raw)
  if not map.dirty[key] then
    map.dirty[key] = true
    map.dirty[#map.dirty + 1] = key
  end
  map.held[key] = raw
end

local function put(map, key, value)
  hold(map, key, record(map, 's' .. key, value) .. ':' .. value)
  return map.revision
end

local function holds(when, raw)
  if when == '' then return true end
  if when == '0' then return not raw end
  return raw and sub(raw, 1, #when + 1) == when .. ':'
end

local function open_stream(place)
  local stream = streams[place]
  if not stream then
    local config = keys[place + 1]
    local found = call('HMGET', config, 'k', 'm', 'x', 'n')
    stream = {events = keys[place], config = config, kind = found[1], most = tonumber(found[2] or ''),
      sealed = found[3], sinks = tonumber(found[4] or '0'), acked = {}}
    streams[place] = stream
  end
  return stream
end
--RARE--
local function netstrings(data)
  local items, from = {}, 1
  while from <= #data do
    local colon = string.find(data, ':', from, true)
    local digits = colon and sub(data, from, colon - 1) or ''
    if not match(digits, '^%d+$') or #digits > 11 or (#digits > 1 and string.byte(digits) == 48) then return nil end
    local stop = colon + 1 + tonumber(digits)
    if sub(data, stop, stop) ~= ',' then return nil end
    items[#items + 1] = sub(data, colon + 1, stop - 1)
    from = stop + 1
  end
  return items
end

local function add(current, by)  -- in the server's 64-bit integers: Lua's numbers have 53 bits
  local sign, digits = match(current or '0', '^(%-?)(%d+)$')
  if not digits or #digits > 19 then return nil, '!wire' end
  digits = string.gsub(digits, '^0+', '')
  call('SET', keys[3], digits == '' and '0' or sign .. digits)
  local answer = redis.pcall('INCRBY', keys[3], by)
  local value = call('GET', keys[3])
  call('DEL', keys[3])
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

local rare = {}  -- each returns its result and whether it was refused in a way that stops the section

function rare.c()
  local map, when = open_map(argv[at + 1], ''), argv[at + 2]
  at = at + 3
  local empty = call('HLEN', map.data) <= 1
  local good = when == '' or (when == '0' and empty) or when == num(map.revision)
  if not good then return {0, map.revision, false}, true end
  if not empty then
    record(map, 'c', '')
    map.cleared, map.held, map.dirty = true, {}, {}
  end
  return {1, map.revision, false}
end

function rare.x()  -- stands alone in its section, so it may write at once
  local place = argv[at + 1]
  local map = open_map(place, '')
  at = at + 2
  writing = true
  if map.birth then
    local kind = call('HLEN', map.data) > 1 and 'x' or 'y'  -- y: nothing was left to clear, so watchers tell nobody
    advance(map)
    call('XADD', map.log, 'NOMKSTREAM', num(map.revision) .. '-' .. nonce, kind, '')
    call('DEL', map.data)
    call('PEXPIRE', map.log, 60000)  -- long enough for every live watcher to see the end
    if tonumber(call('HGET', keys[2], 'r') or '0') < map.revision then call('HSET', keys[2], 'r', num(map.revision)) end
    call('PEXPIRE', keys[2], num(DAY))
  end
  map.was, maps[place] = map.revision, nil
  return 1
end

function rare.u()
  local key, kind, values = argv[at + 2], argv[at + 3], {}
  local map = open_map(argv[at + 1], key)
  local count = argv[at + 4]
  for i = 1, count do values[i] = argv[at + 4 + i] end
  at = at + 5 + count
  local raw = map.held[key]
  if raw and not string.find(raw, '^%d+:') then return '!wire', true end
  local current = raw and sub(raw, string.find(raw, ':', 1, true) + 1)
  local value, problem = update(current or nil, kind, values)
  if problem then return problem, true end
  if raw and value == current then return {tonumber(match(raw, '^%d+')), value, raw} end
  if #value > tonumber(ARGV[4]) then return '!large', true end
  return {put(map, key, value), value, raw}
end
--FREQUENT--
-- Decide the next operation, the index-th of its section: its result, and whether the section stops here.
local function decide(index)
  local op = argv[at]
  if op == 's' then
    local key, when = argv[at + 2], argv[at + 4]
    local map = open_map(argv[at + 1], key)
    local raw = map.held[key]
    at = at + 6
    if not holds(when, raw) then return {0, map.revision, raw}, argv[at - 1] == 0 end
    stamps[index] = put(map, key, argv[at - 3])
    return {1, stamps[index], raw}
  elseif op == 'd' then
    local key, when = argv[at + 2], argv[at + 3]
    local map = open_map(argv[at + 1], key)
    local raw = map.held[key]
    at = at + 5
    if not holds(when, raw) then return {0, map.revision, raw}, argv[at - 1] == 0 end
    if raw then
      record(map, 'd' .. key, '')
      hold(map, key, false)
    end
    stamps[index] = map.revision
    return {1, map.revision, raw}
  elseif op == 'g' then
    local key = argv[at + 2]
    local map = open_map(argv[at + 1], key)
    at = at + 3
    return map.held[key]
  elseif op == 'a' then
    local stream, name, topic, stamp = open_stream(argv[at + 1]), argv[at + 2], argv[at + 3], argv[at + 5]
    local payload, optional, create = argv[at + 4], argv[at + 6], argv[at + 7]
    at = at + 8
    local problem
    if not stream.kind and create == 1 then
      stream.kind, stream.create = 'work', true
    end
    if not stream.kind then
      problem = '!missing'
    elseif stream.sealed then
      problem = '!sealed'
    elseif stream.kind == 'work' and stream.most then
      stream.length = (stream.length or call('XLEN', stream.events)) + 1
      if stream.length > stream.most then problem = '!full' end
    end
    if problem then return problem, optional == 0 end
    local fields = {'n', name, 'p', payload}
    if topic ~= '' then
      fields[5], fields[6] = 't', topic
    end
    if stamp ~= '' then
      fields[#fields + 1] = 's'
      fields[#fields + 1] = format('%.0f', stamps[stamp] or 0)
    end
    appends[#appends + 1] = {index, stream, fields}
    return ''
  elseif op == 'k' then
    local stream, sink, id = open_stream(argv[at + 1]), argv[at + 2], argv[at + 3]
    local group, count, consumer = 'g' .. sink, argv[at + 4], argv[at + 5]
    at = at + 6
    local rows = redis.pcall('XPENDING', stream.events, group, id, id, 1)
    local row = not rows.err and rows[1]
    local mark = sink .. ' ' .. id
    if not row or row[2] ~= consumer or row[4] ~= count or stream.acked[mark] then return 0 end
    stream.acked[mark] = true
    acks[#acks + 1] = {stream, group, id}
    return 1
  end
  return rare[op]()
end

local function write(results)
  writing = true
  -- Appends come first: should another program have put something else where a stream belongs, nothing is written yet.
  for _, append in ipairs(appends) do
    local stream = append[2]
    if stream.create then
      make_stream(stream.events, stream.config, 'work', '')
      stream.create = false
    end
    if stream.kind == 'log' and stream.most then
      results[append[1] + 2] = call('XADD', stream.events, 'MAXLEN', stream.most, '*', unpack(append[3]))
    else
      results[append[1] + 2] = call('XADD', stream.events, '*', unpack(append[3]))
    end
  end
  for _, map in ipairs(opened) do
    if map.revision ~= map.was then
      for _, entry in ipairs(map) do
        local id
        if entry[4] then
          id = call('XADD', map.log, 'NOMKSTREAM', entry[1], entry[2], entry[3], 'p', entry[4])
        else
          id = call('XADD', map.log, 'NOMKSTREAM', 'MAXLEN', '~', keep, entry[1], entry[2], entry[3])
        end
        if not id then  -- nobody watches any more
          map.logged = false
          break
        end
      end
      if map.cleared then call('DEL', map.data) end
      local head = map.id .. ':' .. map.birth .. (map.logged and ':w' or '')
      local first = map.dirty[1]
      if #map.dirty == 1 and map.held[first] then
        call('HSET', map.data, '', head, first, map.held[first])
      else
        local set, unset = {'HSET', map.data, '', head}, nil
        for _, key in ipairs(map.dirty) do
          local value = map.held[key]
          if value then
            set[#set + 1] = key
            set[#set + 1] = value
          else
            unset = unset or {'HDEL', map.data}
            unset[#unset + 1] = key
          end
        end
        call(unpack(set))
        if unset then call(unpack(unset)) end
      end
      map.was, map.born = map.revision, map.birth
    end
  end
  for _, ack in ipairs(acks) do
    local stream, group, id = ack[1], ack[2], ack[3]
    call('XACK', stream.events, group, id)
    if stream.kind == 'work' then drop_if_done(stream.events, stream.sinks, id) end
  end
end

local function decide_and_write()
  local results, index = {-1}, 0
  while at <= #argv do
    local result, stops = decide(index)
    results[index + 2] = result
    if stops then
      results[1] = index
      return results
    end
    index = index + 1
  end
  write(results)
  return results
end

for i = next_section, #ARGV do
  argv, at = i > next_section and cmsgpack.unpack(ARGV[i]) or section, 1
  opened, streams, appends, acks, stamps, writing = {}, {}, {}, {}, {}, false
  local good, answer = pcall(decide_and_write)
  if not good then  -- of this section alone: the others have nothing to do with it
    local why = type(answer) == 'table' and (answer.broken or answer.err) or tostring(answer)
    answer = {writing and -3 or -2, why}
    maps = {}  -- the next section looks for itself what is there
  end
  answers[i - 4] = answer
end
return answers
