-- resume_run: a failed run waits for its next attempt again, while all that it needs is still there.
-- KEYS  1 run  2 events  3 wake
-- ARGV  1 run id  2 token of the call  3 event data (JSON)
-- Answers OK | ALIVE status | OVER status | CLEANED
local run = KEYS[1]
expect(run, 'hash') expect(KEYS[2], 'stream') expect(KEYS[3], 'stream')
local lives, status = alive(run)
if lives then
  if redis.call('HGET', run, 'resumed_by') == ARGV[2] then return {'OK'} end
  return {'ALIVE', status}
end
if status ~= 'failed' then return {'OVER', status} end
if redis.call('HEXISTS', run, 'cleaned') == 1 then return {'CLEANED'} end
redis.call('HDEL', run, 'ended', 'ended_by', 'reason', 'traceback', 'result', 'result_objs', 'token', 'lease', 'owner', 'detail')
redis.call('HSET', run, 'status', 'pending', 'tries', '0', 'resumed_by', ARGV[2])
redis.call('XADD', KEYS[2], '*', 'kind', 'status', 'data', ARGV[3])
redis.call('XADD', KEYS[3], 'MAXLEN', 16, '*', 'run', ARGV[1])
return {'OK'}
