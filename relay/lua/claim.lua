-- claim: one worker's exclusive, time-limited right to run one message.
-- KEYS  1 inbox        stream; the entry is the truth
--       2 claims       hash; message -> attempt|token|lease end|worker
--       3 order        sorted set; the message's turn within (run, node)
--       4 ctx          stream; the Context, newest entry wins
-- ARGV  1 run key (read only)  2 entry  3 message  4 token  5 lease in ms  6 worker
-- Answers OK attempt entry-fields context-entry run-fields now-ms | GONE | STOPPED status | NOT_YET | EXPIRED | BUSY ms left
--       | LAPSED | EXHAUSTED attempts
local inbox, claims, order, ctx = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local run_key, entry, message, token, lease, worker = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
expect(inbox, 'stream') expect(claims, 'hash') expect(order, 'zset') expect(ctx, 'stream')
local lives, status = alive(run_key)
if not lives then return {'STOPPED', status} end
local f, flat = instruction(inbox, entry, message)
if not f then return {'GONE'} end
local now = now_ms()
local held = redis.call('HGET', claims, message)
local attempt, mine = 0, false
if held then
  local c = split(held)
  attempt = tonumber(c[1])
  if c[2] == token then
    mine = true
  elseif c[2] ~= '' then
    local left = tonumber(c[3]) - now
    if left > 0 then return {'BUSY', text_ms(left)} end
    return {'LAPSED'}
  end
end
if not mine then
  if tonumber(f['deadline']) <= now then return {'EXPIRED'} end
  if redis.call('ZRANGE', order, 0, 0)[1] ~= message then return {'NOT_YET'} end
  local most = tonumber(redis.call('HGET', run_key, 'max_deliveries') or '0')
  if most > 0 and attempt >= most then return {'EXHAUSTED', attempt} end
  attempt = attempt + 1
end
-- The delete comes first: a step that begins with one goes through when memory is full.
redis.call('HDEL', claims, message)
redis.call('HSET', claims, message, attempt .. '|' .. token .. '|' .. text_ms(now + lease) .. '|' .. worker)
local context = redis.call('XREVRANGE', ctx, '+', '-', 'COUNT', 1)
local info = redis.call('HMGET', run_key, 'name', 'config', 'client_bundle', 'client_size', 'client_kind', 'client_signature',
  'selector', 'time_limit', 'max_deliveries', 'user')
return {'OK', attempt, flat, context[1] or false, info, text_ms(now)}
