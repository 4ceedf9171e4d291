-- For places in lines: heartbeat, another look, the recovery of a lost push, the promotion of the head, and a new time anchor.
-- KEYS lock, fence, line, places of the first, the second ...
-- ARGV 1 '1': NUMSUB is exact 2 ttl of a place 3 owner of the first 4 owner of the second ...
-- -> {now, answers ...}, each {'held', first, last, ttl, waiting}  {'queued', left, ours, rank}  {'gone'}  {'wrong'}: not a lock at all
local call = redis.call
local time = call('TIME')
local us = time[1] * 1000000 + time[2]

--@common

local function poll(L, F, Q, H, owner)
  local v = redis.pcall('GET', L)
  if type(v) == 'table' then return {'wrong'} end
  local state, a, z, ttl, waiting = stand(L, F, Q, H, v, owner, ARGV[1], ARGV[2])
  if state == 'held' then return {'held', a, z, ttl, waiting} end
  if state == 'free' or not z then return {'gone'} end
  local left, ours = rest_of(L, a)
  return {'queued', left, ours, call('ZRANK', Q, owner)}
end

local answers = {us}
for i = 1, #ARGV - 2 do
  local k = 4 * i
  answers[i + 1] = poll(KEYS[k - 3], KEYS[k - 2], KEYS[k - 1], KEYS[k], ARGV[i + 2])
end
return answers
