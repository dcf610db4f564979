-- free: answered messages that nobody will ask for again, and the arrays that only they named.
-- KEYS  1 run  2 sent  3 deadlines  4 run objs
-- ARGV  1 run id  2 token ('' where the run is over)  3 base of keys  4... message ids
-- Idempotent; an unanswered message is left alone. Answers OK freed | FENCED
local run, sent, deadlines, run_objs = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
if ARGV[2] ~= '' and redis.call('HGET', run, 'token') ~= ARGV[2] then return {'FENCED'} end
local messages = {}
for i = 4, #ARGV do messages[#messages + 1] = ARGV[i] end
return {'OK', free_messages(ARGV[1], sent, deadlines, run_objs, ARGV[3], messages)}
