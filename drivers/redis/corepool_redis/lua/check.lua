-- check: can each map's log be followed from where a watcher stands? Expiry, DEL, FLUSHALL and a failover emit no entry.
-- KEYS: data and log of each map. ARGV: life of the logs in ms, then for each map the id where its watcher stands
-- Answer, for each map: 0 yes; 1 no; 2 no, and the history is another one; 3 yes, and there is more to read
local verdicts = {}
for i = 1, #KEYS, 2 do
  local data, log, stand = KEYS[i], KEYS[i + 1], ARGV[(i + 3) / 2]
  local head = redis.call('HGET', data, '')
  local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  local current = head and string.match(head, '^%d+%-%d+') or (newest and newest[1])
  local verdict = 1
  if newest then
    redis.call('PEXPIRE', log, ARGV[1])
    if newest[1] == current then
      if newest[1] == stand then
        verdict = 0
      elseif redis.call('XRANGE', log, stand, stand)[1] then
        verdict = 3
      elseif not id_less(stand, redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1][1]) then
        verdict = 2
      end
    end
  end
  verdicts[#verdicts + 1] = verdict
end
return verdicts
