-- renew_run: an attempt goes on holding its run, or gives it back.
-- KEYS  1 run  2 wake
-- ARGV  1 token  2 lease in ms; 0 gives the run back  3 '1' if the attempt counts (when given back)
-- Answers OK | FENCED | OVER status
local run = KEYS[1]
local lives, status = alive(run)
if not lives then return {'OVER', status} end
if redis.call('HGET', run, 'token') ~= ARGV[1] then return {'FENCED'} end
local lease = tonumber(ARGV[2])
redis.call('HDEL', run, 'lease')
if lease > 0 then
  redis.call('HSET', run, 'lease', text_ms(now_ms() + lease))
else
  redis.call('HSET', run, 'token', '', 'owner', '')
  if ARGV[3] ~= '1' then redis.call('HINCRBY', run, 'tries', -1) end
  redis.call('XADD', KEYS[2], 'MAXLEN', 16, '*', 'run', 'released')
end
return {'OK'}
