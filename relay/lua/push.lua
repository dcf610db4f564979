-- push: instructions into inboxes, at most one entry per message id however often it is repeated.
-- KEYS  1 run  2 sent  3 deadlines  4 journal  5 run nodes  6 run objs  7 nodes; then per message: inbox, order
-- ARGV  1 run id  2 token  3 checkpoint  4 call  5 digest of the whole call  6 prefix of shared objects
--       7 number of contents, then per content: body, digests, bytes
--       then per message: id, node, content number (from 0), type, group, ttl in ms, on_offline, out key
-- Answers OK revision created-ms began-ms (when it was called first) | STOPPED status | FENCED | STALE checkpoint | MISMATCH | MISSING digest... | UNKNOWN_NODE name...
local run, sent, deadlines, journal, run_nodes, run_objs, nodes = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local run_id, token, checkpoint, call, request, prefix = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local lives, status = alive(run)
if not lives then return {'STOPPED', status} end
if redis.call('HGET', run, 'token') ~= token then return {'FENCED'} end
local at = redis.call('HGET', run, 'checkpoint') or '0'
if at ~= checkpoint then return {'STALE', at} end
expect(sent, 'hash') expect(deadlines, 'zset') expect(journal, 'hash') expect(run_nodes, 'set') expect(run_objs, 'set')
local name = 'push:' .. call
local before = split(redis.call('HGET', journal, name) or '')
if before[1] ~= '' and before[1] ~= request then return {'MISMATCH'} end

local at_arg, contents = 7, {}
for i = 1, tonumber(ARGV[at_arg]) do
  local base = at_arg + (i - 1) * 3
  contents[i] = {body = ARGV[base + 1], objs = ARGV[base + 2], bytes = ARGV[base + 3]}
end
local first = at_arg + #contents * 3 + 1
local count = (#ARGV - first + 1) / 8
local unknown, missing = {}, {}
for i = 0, count - 1 do
  local node = ARGV[first + i * 8 + 1]
  if redis.call('SISMEMBER', nodes, node) == 0 then unknown[#unknown + 1] = node end
  expect(KEYS[8 + i * 2], 'stream') expect(KEYS[9 + i * 2], 'zset')
end
if #unknown > 0 then
  table.insert(unknown, 1, 'UNKNOWN_NODE')
  return unknown
end
local chunks = {}
for _, content in ipairs(contents) do
  for _, d in ipairs(words(content.objs)) do
    if not chunks[d] then
      chunks[d] = complete(prefix, d)
      if not chunks[d] then missing[#missing + 1] = d end
    end
  end
end
if #missing > 0 then
  table.insert(missing, 1, 'MISSING')
  return missing
end

-- From here on only writes.
local revision = redis.call('HINCRBY', run, 'rev', 1)
local now = now_ms()
local began = before[2] or text_ms(now)
redis.call('HSET', journal, name, request .. '|' .. began)
local owner = run_id .. ':' .. checkpoint
for d, n in pairs(chunks) do
  redis.call('SADD', prefix .. d .. ':owners', owner)
  redis.call('SADD', run_objs, owner .. ' ' .. d)
  persist(prefix, d, n)
end
for i = 0, count - 1 do
  local base = first + i * 8
  local id, node, content = ARGV[base], ARGV[base + 1], contents[tonumber(ARGV[base + 2]) + 1]
  if redis.call('HEXISTS', sent, id) == 0 and redis.call('EXISTS', ARGV[base + 7]) == 0 then
    local inbox, order = KEYS[8 + i * 2], KEYS[9 + i * 2]
    local seq = redis.call('HINCRBY', run, 'seq', 1)
    local deadline = text_ms(now + tonumber(ARGV[base + 5]))
    local entry = redis.call('XADD', inbox, '*', 'kind', 'message', 'id', id, 'run', run_id, 'seq', seq, 'type', ARGV[base + 3],
      'group', ARGV[base + 4], 'created', text_ms(now), 'deadline', deadline, 'offline', ARGV[base + 6],
      'body', content.body, 'objs', content.objs, 'bytes', content.bytes)
    redis.call('ZADD', order, seq, id)
    redis.call('HSET', sent, id, table.concat({node, entry, seq, deadline, checkpoint, ARGV[base + 6]}, '|'))
    redis.call('ZADD', deadlines, deadline, id)
    redis.call('SADD', run_nodes, node)
  end
end
return {'OK', revision, text_ms(now), began}
