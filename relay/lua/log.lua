-- log: lines that a ClientApp logged or printed, capped; nothing once the run is over.
-- KEYS  1 log
-- ARGV  1 run key (read only)  2 most lines to keep  3... lines (JSON)
-- Answers OK | OVER
if not alive(ARGV[1]) then return {'OVER'} end
for i = 3, #ARGV do redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'data', ARGV[i]) end
return {'OK'}
