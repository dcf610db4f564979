-- beat: a role or a node is alive: the lease is taken, extended or refused, and with it goes the node's heartbeat.
-- KEYS  1 lease (string with TTL)  2 heartbeat (string with TTL), where the lease brings one
-- ARGV  1 holder  2 ttl in ms; 0 drops it  3 '1' if it may be taken from anybody  4 holder that is known to be dead ('' none)
--       5 the heartbeat's ttl in ms
-- The first write deletes or extends an expiry, so that all of it goes through when memory is full.
-- Answers OK | HELD holder ms-left
local holder = redis.call('GET', KEYS[1])
local ttl = tonumber(ARGV[2])
if holder and holder ~= ARGV[1] and ARGV[3] ~= '1' and holder ~= ARGV[4] then
  if ttl == 0 then return {'OK'} end
  return {'HELD', holder, redis.call('PTTL', KEYS[1])}
end
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ttl)  -- which ends it if that is 0
else
  redis.call('DEL', KEYS[1])
  if ttl > 0 then redis.call('SET', KEYS[1], ARGV[1], 'PX', ttl) end
end
if KEYS[2] and ttl > 0 and redis.call('PEXPIRE', KEYS[2], ARGV[5]) == 0 then
  redis.call('SET', KEYS[2], '1', 'PX', ARGV[5])
end
return {'OK'}
