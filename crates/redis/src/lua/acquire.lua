-- Takes the lock if it is free and nobody waits for it, else a place in the line. Asked again, it says the same again.
-- KEYS lock, fence, line, places
-- ARGV 1 owner 2 process 3 ttl 4 tokens in a row 5 'try' or 'join' 6 not after this time, in us 7 metadata 8 '1': NUMSUB is exact
--      9 '1': our channel is subscribed to 10 ttl of a place
-- -> {'held', now, first, last, ttl, waiting}  {'busy', now, left, ours}  {'queued', now, left, ours, rank}  {'late', now}
local call, L, F, Q = redis.call, KEYS[1], KEYS[2], KEYS[3]
local owner, process, size = ARGV[1], ARGV[2], ARGV[4]
local time = call('TIME')
local us = time[1] * 1000000 + time[2]
if us > tonumber(ARGV[6]) then return {'late', us} end
local v = call('GET', L)
if not v and call('EXISTS', Q) == 0 then
  -- The common case, before any function is defined: that alone costs more than a GET.
  local a, last = us, tonumber(call('GET', F) or '0')
  if last >= us then a = last + 1 end
  local z = a + size - 1
  call('SET', F, string.format('%.0f', z), 'PX', ARGV[3] + 3600000)
  call('SET', L, string.format('dl1:%s:%s:%.0f:%.0f:', owner, process, a, z) .. ARGV[3] .. ':' .. ARGV[7], 'PX', ARGV[3])
  return {'held', us, a, z, tonumber(ARGV[3]), 0}
end

--@common

local H, ttl = KEYS[4], tonumber(ARGV[3])
local state, a, z, has, waiting = stand(L, F, Q, H, v, owner, ARGV[8], ARGV[10])
if state == 'held' then
  local was, _, _, _, start = parse(v or '')
  if was and was ~= process then
    -- Resumed by another process: what is to be told of the lock is told there from now on.
    local left = call('PTTL', L)
    call('PEXPIRE', L, left)
    call('SET', L, 'dl1:' .. owner .. ':' .. process .. ':' .. string.sub(v, 71, start - 1) .. string.sub(v, start), 'PX', left)
  end
  return {'held', us, a, z, has, waiting}
end
if state == 'free' then
  a, z = block(tonumber(call('GET', F) or '0'), tonumber(size))
  put(L, F, owner, process, a, z, ttl, ARGV[7])
  return {'held', us, a, z, ttl, 0}
end
local place
v, place = a, z
local left, ours = rest_of(L, v)
if ARGV[5] == 'try' then return {'busy', us, left, ours} end
if not place then
  call('ZADD', Q, call('HINCRBY', H, '#', 1), owner)
  call('HSET', H, owner .. 'i', process .. ':' .. ARGV[9] .. ':' .. ARGV[3] .. ':' .. size .. ':' .. ARGV[7])
  touch(Q, H, owner, ARGV[10])
  if v and ours == 1 and call('ZCARD', Q) == 1 then tell(parse(v), 'c:' .. string.sub(v, 5, 36)) end
end
return {'queued', us, left, ours, call('ZRANK', Q, owner)}
