-- apply: what clients change together in one namespace: keys of maps, events of streams, acknowledgements.
-- What several callers commit at the same moment comes as several sections of one run (group commit). They are decided one
-- after the other, each in the light of those before it; each is applied as a whole or not at all, on its own.
-- KEYS: fence, marks, then data and log of each map, events and configuration of each stream
-- ARGV: epoch, nonce, length of the logs, and one flat MessagePack array, the body:
--   number of maps; for each its place in KEYS, the number of its keys that are used, and these
--   number of streams; for each its place in KEYS
--   then the sections: for each its length in parts, and its operations one after the other. They name a map and a stream by
--   their index in the above, a key by its index in what is held (the first one has 2, the head has 1):
--     's' map key value when optional        set          -> applied, revision, previous
--     'd' map key when optional              delete       -> applied, revision, previous
--     'g' map key                            get          -> '<revision>:<value>' or nil
--     'a' stream name topic payload stamp optional create   append -> id or '!missing', '!sealed', '!full'
--     'k' stream sink id count consumer      acknowledge  -> 1 or 0
--   when: '' always, '0:' absent, else '<revision>:'
-- The answer is flat too: for each section the index of the operation that stopped it or -1, then the results so far; or -2 and
-- why nothing of it was applied; or -3 and why it may have been applied in part.
-- Redis does not roll a script back, so nothing of a section is written before all of it is decided, and then first what might
-- still fail. What a run costs is its calls of commands, its tables and its functions (each is made anew in every run). So a
-- map is read once and written once, by one command with all the keys that are concerned, and `held` is what it holds in
-- between; and there are no functions but what few runs need.
local call, try, format, sub = redis.call, redis.pcall, string.format, string.sub
local nonce, keep = ARGV[2], ARGV[3]
local body = cmsgpack.unpack(ARGV[4])
local maps, streams, at = {}, {}, 2  -- at: where in the body

local function shared()
--SHARED--
  return {first_revision = first_revision, make_stream = make_stream, drop_if_done = drop_if_done}
end

for index = 1, body[1] do
  local place, last = body[at], at + 1 + body[at + 1]
  local held = try('HMGET', KEYS[place], '', unpack(body, at + 2, last))
  local broken, revision, birth, logged = held.err, 0, nil, ':w'  -- a map that begins may have a log still
  if held[1] then
    revision, birth, logged = string.match(held[1], '^(%d+)%-%d+(:%d+)(:?w?)$')
    if not revision then broken = 'WRONGTYPE the head of a map was not written by this driver' end
  end
  revision = tonumber(revision)
  maps[index] = {names = at, held = held, revision = revision, was = revision, digits = nil, birth = birth,
    logged = logged ~= '', edited = last > at + 2 and {false, false, false, false, false, false, false, false, false}}
  if broken then maps[index].broken = broken end
  at = last + 1
end

for index = 1, body[at] do
  local place = body[at + index]
  local found = try('HMGET', KEYS[place + 1], 'k', 'm', 'x', 'n')
  streams[index] = {events = KEYS[place], config = KEYS[place + 1], kind = found[1], most = tonumber(found[2] or ''),
    sealed = found[3], sinks = tonumber(found[4] or 0)}
  if found.err then streams[index].broken = found.err end
end
at = at + body[at] + 1

local answers, n = {}, 0
-- What a section is going to do, in arrays that are used again for the next one: so many places of them are its own.
local undo, undos = {0, 0, 0, 0, 0, 0, 0, 0, 0}, 0  -- map, key, what was held
local logs, logged = {}, 0  -- map, revision, kind of change and key, value
local appends, appended = {}, 0  -- stream, place in the body, place in the answers
local stamps = {0, 0, 0, 0}  -- by operation: the revision it gave
local acks, acked = {}, 0  -- stream, group, id; of all sections up to now

while body[at] do
  local start, last, i, index = n + 1, at + body[at], at + 1, 1
  local acked_before = acked
  local stopped, failed, writing = false, nil, false
  answers[start], n = -1, start
  undos, logged, appended = 0, 0, 0

  -- decide
  while i <= last and not stopped and not failed do
    local op, key = body[i], body[i + 2]
    if op == 's' or op == 'd' then
      local map, set, value, applied = maps[body[i + 1]], op == 's', '', 1
      if set then
        value, i = body[i + 3], i + 6
      else
        i = i + 5
      end
      local when, raw = body[i - 2], map.held[key]
      failed = map.broken
      if failed then  -- as told below
      elseif when == '' or (when == '0:' and not raw) or (raw and sub(raw, 1, #when) == when) then
        if set or raw then
          if not map.birth then  -- it begins (again); its first log entry names the revision before it: a gap that is none
            local first, newest = shared().first_revision(KEYS[body[map.names] + 1])
            map.first, map.before, map.birth = format('%.0f', first), format('%.0f', newest), format(':%.0f', first)
            map.revision, map.was = first - 1, first - 1
          end
          local revision = map.revision + 1
          local digits = format('%d', revision)
          if #digits < 16 then digits = format('%.0f', revision) end  -- on some machines %d is of 32 bits
          undo[undos + 1], undo[undos + 2], undo[undos + 3] = map, key, raw
          undos = undos + 3
          map.revision, map.digits, stamps[index] = revision, digits, digits
          if map.edited then map.edited[key] = true end
          map.held[key] = set and digits .. ':' .. value
          if map.logged then
            logs[logged + 1], logs[logged + 2] = map, digits
            logs[logged + 3], logs[logged + 4] = op .. body[map.names + key], value
            logged = logged + 4
          end
        else
          stamps[index] = format('%.0f', map.revision)
        end
      else
        applied, stamps[index] = 0, nil
        stopped = body[i - 1] == 0
      end
      answers[n + 1], answers[n + 2], answers[n + 3] = applied, map.revision, raw or false
      n = n + 3
    elseif op == 'g' then
      local map = maps[body[i + 1]]
      failed = map.broken
      n, i = n + 1, i + 3
      answers[n] = map.held[key] or false
    elseif op == 'a' then
      local stream, problem = streams[body[i + 1]], nil
      local kind = stream.kind or (body[i + 7] == 1 and 'work')
      failed = stream.broken
      if not kind then
        problem = '!missing'
      elseif stream.sealed then
        problem = '!sealed'
      elseif kind == 'work' and stream.most then
        if not stream.length then
          local length = try('XLEN', stream.events)
          if type(length) == 'table' then failed = length.err else stream.length = length end
        end
        if not failed and stream.length >= stream.most then problem = '!full' end
      end
      n = n + 1
      answers[n] = problem or ''
      if problem then
        stopped = body[i + 6] == 0
      elseif not failed then
        if not stream.kind then stream.kind, stream.fresh = kind, true end
        if stream.length then stream.length = stream.length + 1 end
        appends[appended + 1], appends[appended + 2], appends[appended + 3] = stream, i, n
        appended = appended + 3
      end
      i = i + 8
    else
      local stream, group, id = streams[body[i + 1]], 'g' .. key, body[i + 3]
      local rows = try('XPENDING', stream.events, group, id, id, 1)
      local row, mark = not rows.err and rows[1], group .. id
      stream.acked = stream.acked or {}
      n = n + 1
      answers[n] = 0
      if row and row[2] == body[i + 5] and row[4] == body[i + 4] and not stream.acked[mark] then
        stream.acked[mark], answers[n] = true, 1
        acks[acked + 1], acks[acked + 2], acks[acked + 3] = stream, group, id
        acked = acked + 3
      end
      i = i + 6
    end
    index = index + 1
  end

  -- write what others may watch: what a section needs is known to be there, but another program may have taken its place
  if stopped then
    answers[start] = index - 2
  elseif not failed then
    for k = 1, appended, 3 do
      local stream, op = appends[k], appends[k + 1]
      local name, topic, payload, stamp = body[op + 2], body[op + 3], body[op + 4], body[op + 5]
      if stream.fresh then
        shared().make_stream(stream.events, stream.config, 'work', '')
        stream.fresh, writing = nil, true
      end
      local fields = {'n', name, 'p', payload}
      if topic ~= '' then fields[5], fields[6] = 't', topic end
      if stamp ~= '' then
        fields[#fields + 1] = 's'
        fields[#fields + 1] = stamps[stamp + 1] or '0'
      end
      local id
      if stream.kind == 'log' and stream.most then
        id = try('XADD', stream.events, 'MAXLEN', stream.most, '*', unpack(fields))
      else
        id = try('XADD', stream.events, '*', unpack(fields))
      end
      if type(id) == 'table' then
        failed = id.err
        break
      end
      answers[appends[k + 2]], writing = id, true
    end
    for k = 1, failed and 0 or logged, 4 do
      local map, id, added = logs[k], logs[k + 1] .. '-' .. nonce, false
      local log = KEYS[body[map.names] + 1]
      if logs[k + 1] == map.first then
        added = try('XADD', log, 'NOMKSTREAM', id, logs[k + 2], logs[k + 3], 'p', map.before)
      elseif map.logged then
        added = try('XADD', log, 'NOMKSTREAM', 'MAXLEN', '~', keep, id, logs[k + 2], logs[k + 3])
      end
      map.logged, writing = type(added) == 'string', true  -- without a log nobody watches any more
    end
  end

  -- or take back what was decided
  if stopped or (failed and not writing) then
    for k = undos - 2, 1, -3 do
      local map = undo[k]
      map.held[undo[k + 1]], map.revision = undo[k + 2], map.revision - 1
      map.digits = format('%.0f', map.revision)
      if map.first and map.revision == map.was then map.first, map.birth, map.revision, map.was = nil, nil, 0, 0 end
    end
    for k = 1, appended, 3 do
      local stream = appends[k]
      if stream.length then stream.length = stream.length - 1 end
      if stream.fresh then stream.fresh, stream.kind = nil, nil end
    end
    for k = acked_before + 1, acked, 3 do acks[k].acked[acks[k + 1] .. acks[k + 2]] = nil end
    acked = acked_before
  end
  if failed then
    for k = n, start + 2, -1 do answers[k] = nil end
    answers[start], answers[start + 1] = writing and -3 or -2, failed
    n = start + 1
  end
  at = last + 1
end

local from = 1
while from <= acked do
  local stream, group, ids = acks[from], acks[from + 1], {}
  while from <= acked and acks[from] == stream and acks[from + 1] == group do
    ids[#ids + 1], from = acks[from + 2], from + 3
  end
  call('XACK', stream.events, group, unpack(ids))
  if stream.kind == 'work' and stream.sinks <= 1 then
    call('XDEL', stream.events, unpack(ids))
  elseif stream.kind == 'work' then
    local drop_if_done = shared().drop_if_done
    for _, id in ipairs(ids) do drop_if_done(stream.events, stream.sinks, id) end
  end
end

for index = 1, body[1] do
  local map = maps[index]
  if map.revision ~= map.was then
    local head = map.digits .. '-' .. nonce .. map.birth .. (map.logged and ':w' or '')
    local held, edited, names = map.held, map.edited, map.names
    local data = KEYS[body[names]]
    if not edited and held[2] then  -- of a single key there is nothing to remember
      call('HSET', data, '', head, body[names + 2], held[2])
    else
      local fields, count, gone = {data, '', head, '', '', '', '', '', '', '', ''}, 3, nil
      for key = 2, body[names + 1] + 1 do
        if not edited then
          gone = {data, body[names + key]}
        elseif edited[key] and held[key] then
          fields[count + 1], fields[count + 2] = body[names + key], held[key]
          count = count + 2
        elseif edited[key] then
          gone = gone or {data}
          gone[#gone + 1] = body[names + key]
        end
      end
      call('HSET', unpack(fields, 1, count))
      if gone then call('HDEL', unpack(gone)) end
    end
  end
end
return answers
