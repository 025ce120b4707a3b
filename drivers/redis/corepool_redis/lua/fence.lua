-- fence: from now on, refuse every fenced script of this client with a smaller epoch than this one.
-- KEYS: the fence. ARGV: epoch
redis.call('SET', KEYS[1], ARGV[1], 'PX', num(DAY))
return 1
