-- checkpoint: the ServerApp's Context with what is folded into it, in one step.
-- KEYS  1 run  2 ctx  3 journal  4 run objs  5 sent  6 deadlines
-- ARGV  1 run id  2 token  3 the checkpoint that this one follows  4 Context  5 digests it names  6 folded message ids
--       7 prefix of shared objects  8 base of keys  9 how many of the folded messages to free in this step
-- The folded ids stand in the entry as its free-list: freeing what is left of them follows in batches (free) and can be
-- repeated from there.
-- A repeat (same token, checkpoint one ahead, same content) answers the same.
-- Answers OK checkpoint revision done (how many of the folded messages this step has seen to) | FENCED | STOPPED status
--  | STALE checkpoint | MISSING digest...
local run, ctx, journal, run_objs, sent, deadlines = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local lives, status = alive(run)
if not lives then return {'STOPPED', status} end
if redis.call('HGET', run, 'token') ~= ARGV[2] then return {'FENCED'} end
expect(ctx, 'stream') expect(journal, 'hash') expect(run_objs, 'set')
expect(sent, 'hash') expect(deadlines, 'zset')
local at = tonumber(redis.call('HGET', run, 'checkpoint') or '0')
local from = tonumber(ARGV[3])
if at ~= from then
  local newest = redis.call('XREVRANGE', ctx, '+', '-', 'COUNT', 1)
  if at == from + 1 and newest[1] then
    local f = fields(newest[1][2])
    if f['token'] == ARGV[2] and f['data'] == ARGV[4] then
      return {'OK', at, tonumber(redis.call('HGET', run, 'rev')), 0}
    end
  end
  return {'STALE', at}
end
local missing, chunks, own = {}, {}, words(ARGV[5])
for _, d in ipairs(own) do
  chunks[d] = complete(ARGV[7], d)
  if not chunks[d] then missing[#missing + 1] = d end
end
if #missing > 0 then
  table.insert(missing, 1, 'MISSING')
  return missing
end
local old = redis.call('XRANGE', ctx, '-', '+')
redis.call('DEL', journal)
local next_checkpoint = from + 1
local owner = ARGV[1] .. ':ctx' .. next_checkpoint
for _, d in ipairs(own) do
  redis.call('SADD', ARGV[7] .. d .. ':owners', owner)
  redis.call('SADD', run_objs, owner .. ' ' .. d)
  persist(ARGV[7], d, chunks[d])
end
for _, e in ipairs(old) do
  local f = fields(e[2])
  local old_owner = ARGV[1] .. ':ctx' .. f['checkpoint']
  for _, d in ipairs(words(f['objs'])) do
    disown(ARGV[7], d, old_owner)
    redis.call('SREM', run_objs, old_owner .. ' ' .. d)
  end
  redis.call('XDEL', ctx, e[1])
end
redis.call('XADD', ctx, '*', 'checkpoint', next_checkpoint, 'data', ARGV[4], 'objs', ARGV[5], 'free', ARGV[6], 'token', ARGV[2])
redis.call('HSET', run, 'checkpoint', next_checkpoint, 'tries', '1')
local revision = redis.call('HINCRBY', run, 'rev', 1)
local first = words(ARGV[6])
for i = #first, tonumber(ARGV[9]) + 1, -1 do first[i] = nil end
-- What a node has written over may make it fail. The checkpoint stands all the same, and whoever frees is told.
local done = pcall(free_messages, ARGV[1], sent, deadlines, run_objs, ARGV[8], first)
return {'OK', next_checkpoint, revision, done and #first or 0}
