-- answer: an error answer that needs no turn and overrides a lease, so that nothing waits behind it.
-- KEYS  1 inbox  2 claims  3 order  4 out  5 replies
-- ARGV  1 run key (read only)  2 entry  3 message  4 reason: EXPIRED CANCELLED OFFLINE EXHAUSTED REFUSED
--       5 error body  6 code  7 run id  8 group  9 alive key  10 token of the ServerApp ('' where a node answers)
-- The reason is checked here: EXPIRED needs a past deadline, OFFLINE a missing heartbeat, EXHAUSTED the used-up limit.
-- Answers ANSWERED | ALREADY | GONE | NOT_SO | RUN_OVER | FENCED
local inbox, claims, order, out, replies = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local run_key, entry, message, reason = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if redis.call('EXISTS', out) == 1 then return {'ALREADY'} end
if not alive(run_key) then return {'RUN_OVER'} end
if ARGV[10] ~= '' and redis.call('HGET', run_key, 'token') ~= ARGV[10] then return {'FENCED'} end
expect(inbox, 'stream') expect(claims, 'hash') expect(order, 'zset') expect(replies, 'stream')
local f = instruction(inbox, entry, message)
if not f then return {'GONE'} end
local now = now_ms()
local held = redis.call('HGET', claims, message)
local attempt = held and tonumber(split(held)[1]) or 0
if reason == 'EXPIRED' and tonumber(f['deadline']) > now then return {'NOT_SO'} end
if reason == 'OFFLINE' and redis.call('EXISTS', ARGV[9]) == 1 then return {'NOT_SO'} end
if reason == 'EXHAUSTED' then
  local most = tonumber(redis.call('HGET', run_key, 'max_deliveries') or '0')
  if most == 0 or attempt < most or (held and split(held)[2] ~= '') then return {'NOT_SO'} end
end
redis.call('HDEL', claims, message)
local pointer = redis.call('XADD', replies, '*', 'm', message)
redis.call('HSET', out, 'token', 'answer:' .. reason, 'run', ARGV[7], 'seq', f['seq'], 'ok', '0', 'body', ARGV[5], 'objs', '',
  'own', '', 'code', ARGV[6], 'bytes', #ARGV[5], 'created', text_ms(now), 'attempt', attempt, 'ptr', pointer)
close(inbox, claims, order, ARGV[9], entry, message, ARGV[8])
return {'ANSWERED'}
