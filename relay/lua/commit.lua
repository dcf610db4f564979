-- commit: the reply and the new Context of one message, both or neither, once.
-- KEYS  1 inbox   stream; the entry leaves it          2 claims   hash; the token must be the newest
--       3 order   sorted set; the message must be the lowest   4 out  hash; the authoritative answer
--       5 replies stream; pointers that the Grid blocks on     6 ctx  stream; Context versions
--       7 objs    set; the digests that the run made this node upload
-- ARGV  1 run key (read only)  2 entry  3 message  4 token  5 prefix of the node's objects  6 group  7 alive key
--       8 ok '1' or '0'  9 body  10 digests the reply names  11 code  12 bytes
--       13 '1' if there is a Context  14 Context  15 digests the Context names  16 Context versions to keep  17 run id
-- Answers COMMITTED | SUPERSEDED | STOPPED | MISSING digest... | FOREIGN digest...
local inbox, claims, order, out, replies, ctx, objs = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local run_key, entry, message, token, prefix = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local by = redis.call('HGET', out, 'token')
if by then
  if by == token then return {'COMMITTED'} end
  return {'SUPERSEDED'}
end
if not alive(run_key) then return {'STOPPED'} end
expect(inbox, 'stream') expect(claims, 'hash') expect(order, 'zset') expect(replies, 'stream') expect(ctx, 'stream')
expect(objs, 'set')
local f = instruction(inbox, entry, message)
if not f then return {'SUPERSEDED'} end
local held = redis.call('HGET', claims, message)
if not held then return {'SUPERSEDED'} end
local c = split(held)
if c[2] ~= token then return {'SUPERSEDED'} end
if redis.call('ZRANGE', order, 0, 0)[1] ~= message then return {'SUPERSEDED'} end

-- Every object named must be complete. An answer names its request's digests or the node's uploads; a Context the node's.
local requested = {}
for _, d in ipairs(words(f['objs'])) do requested[d] = true end
local missing, chunks, reply_own = {}, {}, {}
for _, d in ipairs(words(ARGV[10])) do
  if not requested[d] then
    chunks[d] = complete(prefix, d)
    if not chunks[d] then missing[#missing + 1] = d end
    reply_own[#reply_own + 1] = d
  end
end
local context_own = words(ARGV[15])
for _, d in ipairs(context_own) do
  chunks[d] = complete(prefix, d)
  if not chunks[d] then missing[#missing + 1] = d end
end
if #missing > 0 then
  table.insert(missing, 1, 'MISSING')
  return missing
end

-- From here on only writes.
local now = text_ms(now_ms())
local upload = 'up:' .. ARGV[17] .. ':' .. message
redis.call('HDEL', claims, message)
local pointer = redis.call('XADD', replies, '*', 'm', message)
redis.call('HSET', out, 'token', token, 'run', ARGV[17], 'seq', f['seq'], 'ok', ARGV[8], 'body', ARGV[9], 'objs', ARGV[10],
  'own', table.concat(reply_own, ' '), 'code', ARGV[11], 'bytes', ARGV[12], 'created', now, 'attempt', c[1], 'ptr', pointer)
for _, d in ipairs(reply_own) do
  redis.call('SADD', prefix .. d .. ':owners', message)
  redis.call('SREM', prefix .. d .. ':owners', upload)
  persist(prefix, d, chunks[d])
end
if ARGV[13] == '1' then
  local version = redis.call('XADD', ctx, '*', 'data', ARGV[14], 'objs', ARGV[15], 'm', message)
  for _, d in ipairs(context_own) do
    redis.call('SADD', prefix .. d .. ':owners', 'ctx:' .. ARGV[17] .. ':' .. version)
    redis.call('SREM', prefix .. d .. ':owners', upload)
    redis.call('SADD', objs, d)
    persist(prefix, d, chunks[d])
  end
  local surplus = redis.call('XLEN', ctx) - tonumber(ARGV[16])
  if surplus > 0 then
    for _, old in ipairs(redis.call('XRANGE', ctx, '-', '+', 'COUNT', surplus)) do
      for _, d in ipairs(words(fields(old[2])['objs'])) do
        if disown(prefix, d, 'ctx:' .. ARGV[17] .. ':' .. old[1]) then redis.call('SREM', objs, d) end
      end
      redis.call('XDEL', ctx, old[1])
    end
  end
end
close(inbox, claims, order, ARGV[7], entry, message, ARGV[6])
return {'COMMITTED'}
