-- Shared by every step (prepended by the loader).
-- now_ms(): the server's clock. alive(run key): may anything still be written for the run?
-- expect(key, type): raises before the first write when a key holds what no step wrote.
-- words(text): the space-separated words of a text. split(text): the fields of 'a|b|c'.
local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end
local function text_ms(ms) return string.format('%.0f', ms) end
local function alive(run_key)
  local status = redis.call('HGET', run_key, 'status')
  return status == 'pending' or status == 'running', status or 'gone'
end
local function expect(key, kind)
  local found = redis.call('TYPE', key)
  if type(found) == 'table' then found = found['ok'] end
  if found ~= 'none' and found ~= kind then
    error('CORRUPT ' .. key .. ' holds a ' .. found .. ', not a ' .. kind, 0)
  end
end
local function words(text)
  local out = {}
  for w in string.gmatch(text or '', '%S+') do out[#out + 1] = w end
  return out
end
local function split(text)
  local out = {}
  for w in string.gmatch((text or '') .. '|', '([^|]*)|') do out[#out + 1] = w end
  return out
end
local function fields(flat)
  local out = {}
  for i = 1, #flat, 2 do out[flat[i]] = flat[i + 1] end
  return out
end
-- An object is complete when its manifest and every chunk are there. Returns the number of chunks, or nil.
local function complete(prefix, digest)
  local manifest = redis.call('GET', prefix .. digest)
  if not manifest then return nil end
  local chunks = tonumber(split(manifest)[1])
  for i = 0, chunks - 1 do
    if redis.call('EXISTS', prefix .. digest .. ':' .. i) == 0 then return nil end
  end
  return chunks
end
local function persist(prefix, digest, chunks)
  redis.call('PERSIST', prefix .. digest)
  for i = 0, chunks - 1 do redis.call('PERSIST', prefix .. digest .. ':' .. i) end
  redis.call('PERSIST', prefix .. digest .. ':owners')
end
-- Takes an owner from an object; the last one takes the object with it. True when the object is gone.
local function disown(prefix, digest, owner)
  redis.call('SREM', prefix .. digest .. ':owners', owner)
  local left = redis.call('SMEMBERS', prefix .. digest .. ':owners')
  local manifest = redis.call('GET', prefix .. digest)
  if left[1] == 'upload' and not left[2] then
    -- Only a submit that may never come holds it: it expires, as any unfinished upload does.
    for _, key in ipairs({prefix .. digest, prefix .. digest .. ':owners'}) do redis.call('PEXPIRE', key, 900000) end
    for i = 0, (manifest and tonumber(split(manifest)[1]) or 0) - 1 do
      redis.call('PEXPIRE', prefix .. digest .. ':' .. i, 900000)
    end
    return false
  end
  if left[1] then return false end
  if manifest then
    for i = 0, tonumber(split(manifest)[1]) - 1 do redis.call('UNLINK', prefix .. digest .. ':' .. i) end
  end
  redis.call('UNLINK', prefix .. digest, prefix .. digest .. ':owners')
  return true
end
-- Tells the dispatcher of a node that is there to look again; at most one such entry waits in the inbox.
local function wake(inbox, alive_key)
  if redis.call('EXISTS', alive_key) == 0 then return end
  local last = redis.call('XREVRANGE', inbox, '+', '-', 'COUNT', 1)
  if last[1] and fields(last[1][2])['kind'] == 'wake' then return end
  redis.call('XADD', inbox, '*', 'kind', 'wake')
end
-- Closes a message: leaves the order and the claims, acknowledges and deletes the entry, wakes who waits behind it.
local function close(inbox, claims, order, alive_key, entry, message, group)
  redis.call('HDEL', claims, message)
  redis.call('ZREM', order, message)
  redis.call('XACK', inbox, group, entry)
  redis.call('XDEL', inbox, entry)
  if redis.call('XLEN', inbox) > 0 then wake(inbox, alive_key) end
end
-- The fields of an inbox entry if it is there and is this message, else nil.
local function instruction(inbox, entry, message)
  local found = redis.call('XRANGE', inbox, entry, entry)
  if not found[1] then return nil end
  local f = fields(found[1][2])
  if f['id'] ~= message then return nil end
  return f, found[1][2]
end
-- Deletes those of some messages that are answered, with their pointers and the arrays that only they named.
local function free_messages(run_id, sent, deadlines, run_objs, base, messages)
  local freed, checkpoints = 0, {}
  for _, message in ipairs(messages) do
    local known = redis.call('HGET', sent, message)
    if known then
      local s = split(known)
      local node = base .. 'node:' .. s[1] .. ':'
      local out = node .. 'out:' .. message
      local answer = redis.call('HMGET', out, 'ptr', 'own')
      if answer[1] then
        for _, d in ipairs(words(answer[2])) do
          if disown(node .. 'obj:', d, message) then redis.call('SREM', node .. 'objs:' .. run_id, d) end
        end
        redis.call('XDEL', node .. 'replies:' .. run_id, answer[1])
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
          if pair[1] == run_id .. ':' .. c then
            disown(base .. 'obj:', pair[2], pair[1])
            redis.call('SREM', run_objs, member)
          end
        end
      end
    end
  end
  return freed
end
