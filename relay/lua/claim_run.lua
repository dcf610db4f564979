-- claim_run: one attempt's exclusive, time-limited right to be a run's ServerApp.
-- KEYS  1 run  2 ctx  3 events
-- ARGV  1 token  2 lease in ms  3 owner (SuperLink, host, pid)
-- Answers OK attempt checkpoint revision context-entry run-fields | BUSY ms left | OVER status | GONE | EXHAUSTED tries
local run, token = KEYS[1], ARGV[1]
expect(run, 'hash') expect(KEYS[2], 'stream') expect(KEYS[3], 'stream')
local lives, status = alive(run)
if not lives then
  if status == 'gone' then return {'GONE'} end
  return {'OVER', status}
end
local now = now_ms()
local holder = redis.call('HGET', run, 'token')
local again = holder == token
if not again then
  local left = tonumber(redis.call('HGET', run, 'lease') or '0') - now
  if holder and holder ~= '' and left > 0 then return {'BUSY', text_ms(left)} end
  local tries = tonumber(redis.call('HGET', run, 'tries') or '0')
  local most = tonumber(redis.call('HGET', run, 'max_attempts') or '0')
  if most > 0 and tries >= most then return {'EXHAUSTED', tries} end
  redis.call('HDEL', run, 'lease', 'detail')
  redis.call('HSET', run, 'token', token, 'owner', ARGV[3], 'lease', text_ms(now + tonumber(ARGV[2])))
  redis.call('HINCRBY', run, 'attempt', 1)
  redis.call('HINCRBY', run, 'tries', 1)
  if status == 'pending' then
    redis.call('HSET', run, 'status', 'running', 'started', text_ms(now))
    redis.call('XADD', KEYS[3], '*', 'kind', 'status', 'data', '{"status":"running"}')
  end
end
local revision = redis.call('HINCRBY', run, 'rev', 1)
local context = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
return {'OK', tonumber(redis.call('HGET', run, 'attempt')), tonumber(redis.call('HGET', run, 'checkpoint')), revision,
  context[1] or false, redis.call('HGETALL', run)}
