-- submit: a new run, or the one that the same client token made before.
-- KEYS  1 submitted:<client token>  2 run counter  3 runs  4 alive runs  5 wake
-- ARGV  1 base of keys  2 seconds that the client token is remembered  3 prefix of shared objects
--       4 digests that the run's app needs (words)  5... field, value of the run hash
-- Answers OK run created | KNOWN run created | MISSING digest...
local known = redis.call('GET', KEYS[1])
if known then
  for _, d in ipairs(words(ARGV[4])) do
    if redis.call('SCARD', ARGV[3] .. d .. ':owners') > 1 then redis.call('SREM', ARGV[3] .. d .. ':owners', 'upload') end
  end
  return {'KNOWN', known, redis.call('HGET', ARGV[1] .. 'run:' .. known, 'created') or '0'}
end
local missing, chunks = {}, {}
for _, d in ipairs(words(ARGV[4])) do
  chunks[d] = complete(ARGV[3], d)
  if not chunks[d] then missing[#missing + 1] = d end
end
if #missing > 0 then
  table.insert(missing, 1, 'MISSING')
  return missing
end
local run = redis.call('INCR', KEYS[2])
local now = text_ms(now_ms())
local key = ARGV[1] .. 'run:' .. run
redis.call('HSET', key, 'status', 'pending', 'created', now, 'checkpoint', '0', 'attempt', '0', 'tries', '0', 'rev', '0', 'seq', '0')
for i = 5, #ARGV, 2 do redis.call('HSET', key, ARGV[i], ARGV[i + 1]) end
for d, n in pairs(chunks) do
  redis.call('SADD', ARGV[3] .. d .. ':owners', run .. ':app')
  redis.call('SREM', ARGV[3] .. d .. ':owners', 'upload')
  redis.call('SADD', key .. ':objs', run .. ':app ' .. d)
  persist(ARGV[3], d, n)
end
redis.call('ZADD', KEYS[3], now, run)
redis.call('SADD', KEYS[4], run)
redis.call('SET', KEYS[1], run, 'EX', ARGV[2])
redis.call('XADD', key .. ':events', '*', 'kind', 'status', 'data', '{"status":"pending"}')
redis.call('XADD', KEYS[5], 'MAXLEN', 16, '*', 'run', run)
return {'OK', tostring(run), now}
