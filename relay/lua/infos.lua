-- infos: what some nodes say of themselves, and whether they are there. Reads only.
-- KEYS  1 nodes
-- ARGV  1 what keys of nodes begin with  2 number of fields, then the fields; then names of nodes
-- Answers a flat list: for each name '1' if it has a heartbeat, else '0', and its fields ('' where there is none)
local first = 3 + tonumber(ARGV[2])
local wanted, out = {}, {}
for i = 3, first - 1 do wanted[#wanted + 1] = ARGV[i] end
for i = first, #ARGV do
  local node = ARGV[1] .. ARGV[i] .. ':'
  out[#out + 1] = tostring(redis.call('EXISTS', node .. 'alive'))
  for _, value in ipairs(redis.call('HMGET', node .. 'info', unpack(wanted))) do out[#out + 1] = value or '' end
end
return out
