-- release: a claim becomes free, because its holder died or gives it back.
-- KEYS  1 claims
-- ARGV  1 message  2 token that held it  3 '1' if the attempt counts  4 '1' if the lease must have lapsed
--       5 inbox to wake ('' for none)  6 alive key of the node
-- Answers RELEASED attempt | HELD (by another, or still live) | FREE (nobody held it)
local claims, message, token = KEYS[1], ARGV[1], ARGV[2]
local held = redis.call('HGET', claims, message)
if not held then return {'FREE'} end
local c = split(held)
if c[2] == '' then return {'FREE'} end
if c[2] ~= token then return {'HELD'} end
if ARGV[4] == '1' and tonumber(c[3]) > now_ms() then return {'HELD'} end
local attempt = tonumber(c[1])
if ARGV[3] ~= '1' then attempt = math.max(0, attempt - 1) end
redis.call('HDEL', claims, message)
redis.call('HSET', claims, message, attempt .. '||0|')
if ARGV[5] ~= '' then wake(ARGV[5], ARGV[6]) end
return {'RELEASED', attempt}
