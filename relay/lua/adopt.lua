-- adopt: an upload begins: the owner is added first, so that nobody frees what is there, and what is missing is told.
-- KEYS  1 index of the run's digests (set)
-- ARGV  1 run key  2 token of the ServerApp ('' where a node or a submitter uploads)  3 prefix of objects  4 owner
--       5 '1' if the index holds '<owner> <digest>', '0' if plain digests  6 ms that unfinished parts live
--       7 '1' if the run must be alive  8... digests
-- Answers OK missing-digest... | FENCED | OVER status
local lives, status = alive(ARGV[1])
if ARGV[7] == '1' and not lives then return {'OVER', status} end
if ARGV[2] ~= '' and redis.call('HGET', ARGV[1], 'token') ~= ARGV[2] then return {'FENCED'} end
local prefix, owner, ttl = ARGV[3], ARGV[4], tonumber(ARGV[6])
local missing = {'OK'}
for i = 8, #ARGV do
  local d = ARGV[i]
  local owners = prefix .. d .. ':owners'
  local fresh = redis.call('EXISTS', owners) == 0
  redis.call('SADD', owners, owner)
  if ARGV[7] == '1' then
    redis.call('SADD', KEYS[1], ARGV[5] == '1' and (owner .. ' ' .. d) or d)
  elseif fresh then
    -- No run yet that a clean-up would visit: an upload that is never used goes by itself.
    redis.call('PEXPIRE', owners, ttl)
  end
  if not complete(prefix, d) then
    missing[#missing + 1] = d
  else
    -- Parts with an expiry get at least the full time from now.
    for _, key in ipairs({prefix .. d, owners}) do
      local left = redis.call('PTTL', key)
      if left > 0 and left < ttl then redis.call('PEXPIRE', key, ttl) end
    end
    local manifest = redis.call('GET', prefix .. d)
    for c = 0, tonumber(split(manifest)[1]) - 1 do
      local key = prefix .. d .. ':' .. c
      local left = redis.call('PTTL', key)
      if left > 0 and left < ttl then redis.call('PEXPIRE', key, ttl) end
    end
  end
end
return missing
