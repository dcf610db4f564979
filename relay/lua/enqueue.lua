-- enqueue: stores an RQ job and puts it into its queue, once; on the server that holds the queue.
-- KEYS  1 job            hash; RQ's own format, and the mark of who made it
--       2 queue          list of job ids
-- ARGV  1 set of queues (a node may only write it)  2 job id  3 mark  4... field, value (the mark too)
-- Answers MADE (also when it was made by a call with this mark) | TAKEN
expect(KEYS[1], 'hash') expect(KEYS[2], 'list')
if redis.call('EXISTS', KEYS[1]) == 1 then
  return {redis.call('HGET', KEYS[1], 'enqueue_mark') == ARGV[3] and 'MADE' or 'TAKEN'}
end
redis.call('SADD', ARGV[1], KEYS[2])
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('RPUSH', KEYS[2], ARGV[2])
return {'MADE'}
