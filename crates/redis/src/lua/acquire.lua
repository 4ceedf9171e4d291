-- Takes the lock if it is free and nobody waits for it, else a place in the line. Asked again, it says the same again.
-- KEYS lock, fence, line, places
-- ARGV 1 the beginning of the value: 'dl1:' owner ':' process ':' 2 ttl 3 tokens in a row 4 not after this time, in us 5 metadata
--      6 'try' or 'join' 7 '1': NUMSUB is exact 8 '1': our channel is subscribed to 9 ttl of a place
-- -> 'now:first:last': held, and nobody waits
--    {'held', now, first, last, ttl, waiting}  {'busy', now, left, ours}  {'queued', now, left, ours, rank}  {'late', now}
local call, L, F, Q = redis.call, KEYS[1], KEYS[2], KEYS[3]
local time = call('TIME')
local us = time[1] * 1000000 + time[2]
if us > tonumber(ARGV[4]) then return {'late', us} end
local v = call('GET', L)
if not v and call('EXISTS', Q) == 0 then
  -- The common case, before any function is defined, and with as few numbers written as can be: both cost more than a GET.
  local now = string.format('%.0f', us)
  local a, z, last = now, now, tonumber(call('GET', F) or '0')
  if last >= us or ARGV[3] ~= '1' then
    local first = us
    if last >= us then first = last + 1 end
    if first > 2 ^ 53 - ARGV[3] then error('the fencing counter is where numbers are not exact any more') end
    a, z = string.format('%.0f', first), string.format('%.0f', first + ARGV[3] - 1)
  end
  call('SET', F, z, 'PX', ARGV[2] + 3600000)
  call('SET', L, ARGV[1] .. a .. ':' .. z .. ':' .. ARGV[2] .. ':' .. ARGV[5], 'PX', ARGV[2])
  return now .. ':' .. a .. ':' .. z
end

--@common

local H, owner, process, ttl = KEYS[4], string.sub(ARGV[1], 5, 36), string.sub(ARGV[1], 38, 69), ARGV[2]
local state, a, z, has, waiting = stand(L, F, Q, H, v, owner, ARGV[7], ARGV[9])
if state == 'held' then
  if v then
    -- Asked again, perhaps by another process that resumes it: with its words, and told there what is to be told from now on.
    if tonumber(has) < tonumber(ttl) then has = ttl end
    local value = ARGV[1] .. a .. ':' .. z .. ':' .. has .. ':' .. ARGV[5]
    if value ~= v then
      call('PEXPIRE', L, has)
      call('SET', L, value, 'PX', has)
    end
  end
  return {'held', us, a, z, has, waiting}
end
if state == 'free' then
  a, z = block(tonumber(call('GET', F) or '0'), ARGV[3])
  put(L, F, ARGV[1], a, z, ttl, ARGV[5])
  return {'held', us, a, z, ttl, 0}
end
local place
v, place = a, z
local left, ours = rest_of(L, v)
if ARGV[6] == 'try' then return {'busy', us, left, ours} end
if place then return {'queued', us, left, ours, call('ZRANK', Q, owner)} end
call('ZADD', Q, call('HINCRBY', H, '#', 1), owner)
call('HSET', H, owner, ms + ARGV[9], owner .. 'i', process .. ':' .. ARGV[8] .. ':' .. ttl .. ':' .. ARGV[3] .. ':' .. ARGV[5])
call('PEXPIRE', Q, PLACE_MAX)
call('PEXPIRE', H, PLACE_MAX)
local waiting = call('ZCARD', Q)
if v and ours == 1 and waiting == 1 then tell(parse(v), 'c:' .. string.sub(v, 5, 36)) end
return {'queued', us, left, ours, waiting - 1}
