-- map_update: change a list or a counter where it lies.
-- KEYS: fence, marks, data, log, scratch. ARGV: epoch, nonce, length of the log, largest value, key, kind, value...
-- kind: 'i' increment, 'a' append, 'q' append what is not there, 'r' remove.
-- Answer: revision, value, previous; or '!wire', '!overflow', '!large'.
local key, kind, values = ARGV[5], ARGV[6], {}
for i = 7, #ARGV do values[i - 6] = ARGV[i] end

local function netstrings(text)
  local items, from = {}, 1
  while from <= #text do
    local colon = string.find(text, ':', from, true)
    local digits = colon and string.sub(text, from, colon - 1) or ''
    if not string.match(digits, '^%d+$') or #digits > 11 or (#digits > 1 and string.byte(digits) == 48) then return nil end
    local stop = colon + 1 + tonumber(digits)
    if string.sub(text, stop, stop) ~= ',' then return nil end
    items[#items + 1] = string.sub(text, colon + 1, stop - 1)
    from = stop + 1
  end
  return items
end

local function add(current, by)  -- in the server's 64-bit integers: Lua's numbers have 53 bits
  local sign, digits = string.match(current, '^(%-?)(%d+)$')
  if not digits or #digits > 19 then return nil, '!wire' end
  digits = string.gsub(digits, '^0+', '')
  redis.call('SET', KEYS[5], digits == '' and '0' or sign .. digits)
  local answer = redis.pcall('INCRBY', KEYS[5], by)
  local value = redis.call('GET', KEYS[5])
  redis.call('DEL', KEYS[5])
  if type(answer) == 'table' then return nil, '!overflow' end
  return value
end

local function change_list(current)
  local items, named = netstrings(current), {}
  if not items then return nil, '!wire' end
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

local raw, foreign = open_map(key)
if foreign then return foreign end
local written, current
if raw then
  written, current = string.match(raw, '^(%d+):(.*)$')
  if not written then return '!wire' end
end
local value, problem
if kind == 'i' then value, problem = add(current or '0', values[1]) else value, problem = change_list(current or '') end
if problem then return problem end
if value == current then return {tonumber(written), value, raw} end
if #value > tonumber(ARGV[4]) then return '!large' end
local head = change('s' .. key, value)
redis.call('HSET', data, '', head, key, num(map.revision) .. ':' .. value)
return {map.revision, value, raw}
