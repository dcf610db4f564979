-- free: answered messages that nobody will ask for again, and the arrays that only they named.
-- KEYS  1 run  2 sent  3 deadlines  4 run objs
-- ARGV  1 run id  2 token ('' where the run is over)  3 base of keys  4... message ids
-- Idempotent; an unanswered message is left alone. Answers OK freed | FENCED
local run, sent, deadlines, run_objs = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
if ARGV[2] ~= '' and redis.call('HGET', run, 'token') ~= ARGV[2] then return {'FENCED'} end
local base, freed, checkpoints = ARGV[3], 0, {}
for i = 4, #ARGV do
  local message = ARGV[i]
  local known = redis.call('HGET', sent, message)
  if known then
    local s = split(known)
    local node = base .. 'node:' .. s[1] .. ':'
    local out = node .. 'out:' .. message
    local answer = redis.call('HMGET', out, 'ptr', 'own')
    if answer[1] then
      for _, d in ipairs(words(answer[2])) do
        if disown(node .. 'obj:', d, message) then redis.call('SREM', node .. 'objs:' .. ARGV[1], d) end
      end
      redis.call('XDEL', node .. 'replies:' .. ARGV[1], answer[1])
      redis.call('UNLINK', out)
      redis.call('HDEL', sent, message)
      redis.call('ZREM', deadlines, message)
      checkpoints[s[5]] = true
      freed = freed + 1
    end
  end
end
-- An owner (run, checkpoint) goes when no unfreed message of that checkpoint remains.
if next(checkpoints) then
  for _, value in ipairs(redis.call('HVALS', sent)) do checkpoints[split(value)[5]] = nil end
  if next(checkpoints) then
    for _, member in ipairs(redis.call('SMEMBERS', run_objs)) do
      local pair = words(member)
      for c in pairs(checkpoints) do
        if pair[1] == ARGV[1] .. ':' .. c then
          disown(base .. 'obj:', pair[2], pair[1])
          redis.call('SREM', run_objs, member)
        end
      end
    end
  end
end
return {'OK', freed}
