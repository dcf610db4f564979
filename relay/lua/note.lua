-- note: events that carry no number, such as what a ServerApp prints. They may differ when it runs again.
-- KEYS  1 run  2 events
-- ARGV  1 token  2 most events to keep  3 most notes of a run  4... kind, data (JSON)
-- Answers OK notes-that-fitted | FENCED | OVER status
local lives, status = alive(KEYS[1])
if not lives then return {'OVER', status} end
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return {'FENCED'} end
expect(KEYS[2], 'stream')
local fitted, most = 0, tonumber(ARGV[3])
for i = 4, #ARGV, 2 do
  local n = redis.call('HINCRBY', KEYS[1], 'notes', 1)
  if n > most then break end
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'kind', ARGV[i], 'data', ARGV[i + 1])
  fitted = fitted + 1
end
return {'OK', fitted}
