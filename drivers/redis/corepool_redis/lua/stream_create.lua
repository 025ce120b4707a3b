-- stream_create: make a stream exist. KEYS: fence, marks, events, configuration. ARGV: epoch, kind, greatest length or ''
if redis.call('HEXISTS', KEYS[4], 'k') == 1 then return 0 end
make_stream(KEYS[3], KEYS[4], ARGV[2], ARGV[3])
return 1
