-- clean_node: what an ended run left at one node goes, in batches; repeat until it says DONE.
-- KEYS  1 run  2 inbox  3 claims  4 order  5 replies  6 ctx  7 objs  8 log  9 events
-- ARGV  1 run id  2 base of the node's keys  3 group  4 alive key  5 most messages a call  6 most events to keep
-- Log lines move to the run's events, each once, so that they are kept as long as the run is.
-- Never while the run lives; from the first call on it cannot be resumed. Answers DONE | MORE | ALIVE
if alive(KEYS[1]) then return {'ALIVE'} end
if redis.call('EXISTS', KEYS[1]) == 1 then
  -- The delete comes first: a step that begins with one goes through when memory is full.
  redis.call('HDEL', KEYS[1], 'cleaned')
  redis.call('HSET', KEYS[1], 'cleaned', '1')
end
local inbox, claims, order, replies, ctx, objs = KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local most, seen = tonumber(ARGV[5]), 0
-- Unanswered entries: only those of the run. Entries carry their run, so the inbox is read once, in order.
local waiting = redis.call('ZRANGE', order, 0, most - 1)
if #waiting > 0 then
  local of_run = {}
  for _, m in ipairs(waiting) do of_run[m] = true end
  for _, e in ipairs(redis.call('XRANGE', inbox, '-', '+')) do
    local id = fields(e[2])['id']
    if id and of_run[id] then
      redis.call('XACK', inbox, ARGV[3], e[1])
      redis.call('XDEL', inbox, e[1])
    end
  end
  for _, m in ipairs(waiting) do
    redis.call('HDEL', claims, m)
    redis.call('ZREM', order, m)
    redis.call('UNLINK', ARGV[2] .. 'out:' .. m)
  end
  wake(inbox, ARGV[4])
  return {'MORE'}
end
local answered = redis.call('XRANGE', replies, '-', '+', 'COUNT', most)
for _, e in ipairs(answered) do
  local m = fields(e[2])['m']
  for _, d in ipairs(words(redis.call('HGET', ARGV[2] .. 'out:' .. m, 'own') or '')) do
    if disown(ARGV[2] .. 'obj:', d, m) then redis.call('SREM', objs, d) end
  end
  redis.call('UNLINK', ARGV[2] .. 'out:' .. m)
  redis.call('XDEL', replies, e[1])
end
if #answered == most then return {'MORE'} end
local lines = redis.call('XRANGE', KEYS[8], '-', '+', 'COUNT', most)
for _, e in ipairs(lines) do
  redis.call('XADD', KEYS[9], 'MAXLEN', '~', ARGV[6], '*', 'kind', 'log', 'data', fields(e[2])['data'])
  redis.call('XDEL', KEYS[8], e[1])
end
if #lines == most then return {'MORE'} end
redis.call('UNLINK', KEYS[8])
redis.call('UNLINK', ctx, replies, order)
-- What is left in objs belongs to Contexts, or was uploaded by attempts that never committed: drop this run's part.
for _, d in ipairs(redis.call('SMEMBERS', objs)) do
  for _, owner in ipairs(redis.call('SMEMBERS', ARGV[2] .. 'obj:' .. d .. ':owners')) do
    local ctx_run = string.match(owner, '^ctx:(%d+):')
    local up_run = string.match(owner, '^up:(%d+):')
    local of_another = (ctx_run or up_run) and (ctx_run or up_run) ~= ARGV[1]
    if not of_another and redis.call('EXISTS', ARGV[2] .. 'out:' .. owner) == 0 then
      disown(ARGV[2] .. 'obj:', d, owner)
    end
  end
end
redis.call('UNLINK', objs)
return {'DONE'}
