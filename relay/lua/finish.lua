-- finish: the end of a run, once: finished, failed (by its ServerApp's token) or stopped (by anybody).
-- KEYS  1 run  2 events  3 wake  4 run objs
-- ARGV  1 run id  2 token ('' for stopped, or failed by housekeeping)  3 status  4 reason  5 traceback  6 result
--       7 digests of the result  8 prefix of shared objects  9 event data (JSON)
-- Answers OK | OVER status | FENCED | MISSING digest...
local run = KEYS[1]
local lives, status = alive(run)
if not lives then
  if ARGV[2] ~= '' and redis.call('HGET', run, 'ended_by') == ARGV[2] then return {'OK'} end
  return {'OVER', status}
end
if ARGV[2] ~= '' and redis.call('HGET', run, 'token') ~= ARGV[2] then return {'FENCED'} end
local missing, chunks, own = {}, {}, words(ARGV[7])
for _, d in ipairs(own) do
  chunks[d] = complete(ARGV[8], d)
  if not chunks[d] then missing[#missing + 1] = d end
end
if #missing > 0 then
  table.insert(missing, 1, 'MISSING')
  return missing
end
local owner = ARGV[1] .. ':result'
redis.call('HDEL', run, 'lease', 'detail')
for _, d in ipairs(own) do
  redis.call('SADD', ARGV[8] .. d .. ':owners', owner)
  redis.call('SADD', KEYS[4], owner .. ' ' .. d)
  persist(ARGV[8], d, chunks[d])
end
redis.call('HSET', run, 'status', ARGV[3], 'ended', text_ms(now_ms()), 'reason', ARGV[4], 'traceback', ARGV[5], 'result', ARGV[6],
  'result_objs', ARGV[7], 'ended_by', ARGV[2])
redis.call('XADD', KEYS[2], '*', 'kind', 'status', 'data', ARGV[9])
redis.call('XADD', KEYS[3], 'MAXLEN', 16, '*', 'run', ARGV[1])
return {'OK'}
