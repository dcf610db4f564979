-- detail: what a run waits for, or died of last, for people. Nothing is written for a run that is over or gone.
-- KEYS  1 run
-- ARGV  1 text
-- Answers OK | OVER status
local lives, status = alive(KEYS[1])
if not lives then return {'OVER', status} end
redis.call('HSET', KEYS[1], 'detail', ARGV[1])
return {'OK'}
