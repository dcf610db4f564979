-- beat: a role or a node is alive: the lease is taken, extended or refused.
-- KEYS  1 lease (string with TTL)
-- ARGV  1 holder  2 ttl in ms; 0 drops it  3 '1' if it may be taken from anybody  4 holder that is known to be dead ('' none)
-- Extending deletes first, so that it goes through when memory is full.
-- Answers OK | HELD holder ms-left
local holder = redis.call('GET', KEYS[1])
local ttl = tonumber(ARGV[2])
if holder and holder ~= ARGV[1] and ARGV[3] ~= '1' and holder ~= ARGV[4] then
  if ttl == 0 then return {'OK'} end
  return {'HELD', holder, redis.call('PTTL', KEYS[1])}
end
redis.call('DEL', KEYS[1])
if ttl > 0 then redis.call('SET', KEYS[1], ARGV[1], 'PX', ttl) end
return {'OK'}
