-- event: one line of a run's history, once.
-- KEYS  1 run  2 events
-- ARGV  1 token  2 checkpoint  3 number within the checkpoint  4 kind  5 data (JSON)  6 most events to keep
-- Answers OK revision | SEEN revision | FENCED | OVER status
local lives, status = alive(KEYS[1])
if not lives then return {'OVER', status} end
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return {'FENCED'} end
local last = split(redis.call('HGET', KEYS[1], 'event') or '0|0')
local c, n = tonumber(ARGV[2]), tonumber(ARGV[3])
if c < tonumber(last[1]) or (c == tonumber(last[1]) and n <= tonumber(last[2])) then
  return {'SEEN', tonumber(redis.call('HGET', KEYS[1], 'rev'))}
end
-- The delete comes first: a step that begins with one goes through when memory is full, and checkpoints follow events.
redis.call('HDEL', KEYS[1], 'event')
redis.call('HSET', KEYS[1], 'event', ARGV[2] .. '|' .. ARGV[3])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'kind', ARGV[4], 'data', ARGV[5], 'at', ARGV[2] .. '|' .. ARGV[3])
return {'OK', redis.call('HINCRBY', KEYS[1], 'rev', 1)}
