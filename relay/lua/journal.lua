-- journal: what a call of the Grid returned, so that a resumed ServerApp is told the same; the first writer wins.
-- KEYS  1 run  2 journal
-- ARGV  1 token  2 checkpoint  3... name, value
-- Answers OK revision value... (as they stand now) | FENCED | OVER status | STALE checkpoint
local lives, status = alive(KEYS[1])
if not lives then return {'OVER', status} end
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return {'FENCED'} end
local at = redis.call('HGET', KEYS[1], 'checkpoint') or '0'
if at ~= ARGV[2] then return {'STALE', at} end
expect(KEYS[2], 'hash')
-- The delete comes first: a step that begins with one goes through when memory is full, and replies are drained.
redis.call('HDEL', KEYS[2], '')
local out = {'OK', redis.call('HINCRBY', KEYS[1], 'rev', 1)}
for i = 3, #ARGV, 2 do
  redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1])
  out[#out + 1] = redis.call('HGET', KEYS[2], ARGV[i])
end
return out
