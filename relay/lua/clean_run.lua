-- clean_run: what an ended run left at the SuperLink goes, except what is kept with the run; the nodes come first.
-- KEYS  1 run  2 run objs  3 sent  4 deadlines  5 journal  6 run nodes  7 ctx  8 alive runs
-- ARGV  1 run id  2 prefix of shared objects  3 most objects a call  4 '1' to free the kept arrays as well
-- Answers DONE | MORE | ALIVE
if alive(KEYS[1]) then return {'ALIVE'} end
if redis.call('EXISTS', KEYS[1]) == 1 then
  -- The delete comes first: a step that begins with one goes through when memory is full.
  redis.call('HDEL', KEYS[1], 'cleaned')
  redis.call('HSET', KEYS[1], 'cleaned', '1')
end
local kept, done = ARGV[1] .. ':result', 0
for _, member in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  local pair = words(member)
  if pair[1] ~= kept or ARGV[4] == '1' then
    if done == tonumber(ARGV[3]) then return {'MORE'} end
    disown(ARGV[2], pair[2], pair[1])
    redis.call('SREM', KEYS[2], member)
    done = done + 1
  end
end
redis.call('UNLINK', KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7])
redis.call('SREM', KEYS[8], ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HDEL', KEYS[1], 'token', 'lease', 'event', 'owner') end
return {'DONE'}
