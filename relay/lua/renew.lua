-- renew: the holder of a claim goes on holding it, or hears why not.
-- KEYS  1 inbox  2 claims  3 out
-- ARGV  1 run key (read only)  2 entry  3 message  4 token  5 lease in ms
-- Answers OK | STOPPED | COMMITTED | CANCELLED | SUPERSEDED | UNCLAIMED
local inbox, claims, out = KEYS[1], KEYS[2], KEYS[3]
local run_key, entry, message, token, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
if not alive(run_key) then return {'STOPPED'} end
if not instruction(inbox, entry, message) then
  local by = redis.call('HGET', out, 'token')
  if by == token then return {'COMMITTED'} end
  return {'CANCELLED'}
end
local held = redis.call('HGET', claims, message)
if not held then return {'UNCLAIMED'} end
local c = split(held)
if c[2] ~= token then
  if c[2] == '' then return {'UNCLAIMED'} end
  return {'SUPERSEDED'}
end
redis.call('HDEL', claims, message)
redis.call('HSET', claims, message, c[1] .. '|' .. token .. '|' .. text_ms(now_ms() + lease) .. '|' .. c[4])
return {'OK'}
